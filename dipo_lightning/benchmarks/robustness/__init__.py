"""Robustness: attacks that try to get forgotten knowledge back."""
