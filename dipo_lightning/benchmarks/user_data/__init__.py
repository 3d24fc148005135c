"""A user's own forget and retain rows, which need no retain model to be measured."""

from dipo_lightning.benchmarks.user_data.metrics import UserData

__all__ = ["UserData"]
