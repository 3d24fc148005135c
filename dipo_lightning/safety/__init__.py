"""Terminal-safe text, redaction of secrets, and reading checkpoints without unpickling."""
