"""TOFU (Maini et al., 2024, arXiv 2401.06121)."""

from dipo_lightning.benchmarks.tofu.metrics import TOFU

__all__ = ["TOFU"]
