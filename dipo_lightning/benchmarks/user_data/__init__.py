"""Evaluation on the user's own rows."""
