"""Data: rows from files, prompts, tokens, and the data modules that feed a run."""
