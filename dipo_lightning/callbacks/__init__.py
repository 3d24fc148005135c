"""Callbacks: evaluation during training, pictures, and export."""

from dipo_lightning.callbacks.export import ExportModel
from dipo_lightning.callbacks.muse import MUSEEvaluation
from dipo_lightning.callbacks.stopping import StopAtThreshold
from dipo_lightning.callbacks.tofu import TOFUEvaluation

__all__ = ["ExportModel", "MUSEEvaluation", "StopAtThreshold", "TOFUEvaluation"]
