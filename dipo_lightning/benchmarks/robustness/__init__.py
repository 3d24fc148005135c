"""Attacks that try to recover forgotten knowledge, as a callback and for the command ``attack``."""

from dipo_lightning.benchmarks.robustness.attack import Attack, Condition, Subject
from dipo_lightning.benchmarks.robustness.metrics import Robustness

__all__ = ["Attack", "Condition", "Robustness", "Subject"]
