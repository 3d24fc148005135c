"""Tables, pictures and pages from what runs wrote: no model is needed."""
