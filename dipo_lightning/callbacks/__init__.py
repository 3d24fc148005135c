"""Callbacks: the evaluations, checkpoints, stop rules, export, and the results page."""

from dipo_lightning.benchmarks.muse.callback import MUSEEvaluation
from dipo_lightning.benchmarks.tofu.callback import TOFUEvaluation
from dipo_lightning.benchmarks.user_data.callback import MemorizationEvaluation
from dipo_lightning.callbacks.checkpoint import Checkpoint
from dipo_lightning.callbacks.results import ExportModel, ResultsPage
from dipo_lightning.callbacks.stopping import StopAtThreshold, StopOnCollapse

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
