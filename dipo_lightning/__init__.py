"""Make a language model forget with Distribution Preference Optimization, and measure what it forgot and kept.

The public names are loaded on first use, so that ``import dipo_lightning`` is quick.
"""

import importlib
from typing import Any

from dipo_lightning.methods import module_classes

__version__ = "0.1.0"

_PUBLIC = {
    "UnlearningDataModule": "dipo_lightning.data.unlearning",
    "FineTuningDataModule": "dipo_lightning.data.unlearning",
    "TOFUDataModule": "dipo_lightning.benchmarks.tofu.data",
    "TOFUFineTuningDataModule": "dipo_lightning.benchmarks.tofu.data",
    "MUSEDataModule": "dipo_lightning.benchmarks.muse.data",
    "TOFUEvaluation": "dipo_lightning.benchmarks.tofu.callback",
    "MemorizationEvaluation": "dipo_lightning.benchmarks.user_data.callback",
    "MUSEEvaluation": "dipo_lightning.benchmarks.muse.callback",
    "RobustnessEvaluation": "dipo_lightning.benchmarks.robustness.callback",
    "LMEvalEvaluation": "dipo_lightning.benchmarks.lm_eval.callback",
    "Measuring": "dipo_lightning.evaluation.rows",
    "Schedule": "dipo_lightning.evaluation.schedule",
    "StopAtThreshold": "dipo_lightning.callbacks.stopping",
    "StopOnCollapse": "dipo_lightning.callbacks.stopping",
    "ExportModel": "dipo_lightning.callbacks.results",
    "ResultsPage": "dipo_lightning.callbacks.results",
    "TrackioLogger": "dipo_lightning.evaluation.trackers",
    "FSDP2Strategy": "dipo_lightning.models.distributed",
    "InputError": "dipo_lightning.errors",
    "RunError": "dipo_lightning.errors",
}

_PLACES = _PUBLIC | module_classes()

__all__ = ["__version__", *_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
