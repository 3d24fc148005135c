"""TOFU (arXiv 2401.06121)."""
