"""Distribution Preference Optimization (DiPO, arXiv 2510.04773)."""
