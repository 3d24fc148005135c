"""Evaluation during training and after: schedule, scoring, generation, rows and logs."""
