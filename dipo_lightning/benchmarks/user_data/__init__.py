"""User data: forget and retain rows of the user, measured without a retain model."""

from dipo_lightning.benchmarks.user_data.metrics import UserData

__all__ = ["UserData"]
