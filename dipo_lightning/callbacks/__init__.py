"""Callbacks: evaluation during training, pictures, and export."""

from dipo_lightning.callbacks.checkpoint import Checkpoint
from dipo_lightning.callbacks.collapse import StopOnCollapse
from dipo_lightning.callbacks.export import ExportModel
from dipo_lightning.callbacks.muse import MUSEEvaluation
from dipo_lightning.callbacks.own_data import MemorizationEvaluation
from dipo_lightning.callbacks.results_page import ResultsPage
from dipo_lightning.callbacks.stopping import StopAtThreshold
from dipo_lightning.callbacks.tofu import TOFUEvaluation

__all__ = [
    "Checkpoint",
    "ExportModel",
    "MUSEEvaluation",
    "MemorizationEvaluation",
    "ResultsPage",
    "StopAtThreshold",
    "StopOnCollapse",
    "TOFUEvaluation",
]
