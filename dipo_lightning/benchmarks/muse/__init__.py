"""MUSE (Shi et al., 2024, arXiv 2407.06460)."""

from dipo_lightning.benchmarks.muse.metrics import MUSE

__all__ = ["MUSE"]
