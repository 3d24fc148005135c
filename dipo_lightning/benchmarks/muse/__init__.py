"""MUSE (arXiv 2407.06460)."""
