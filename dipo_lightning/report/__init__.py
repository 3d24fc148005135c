"""Tables, pictures and pages from the files of runs, without a model."""
