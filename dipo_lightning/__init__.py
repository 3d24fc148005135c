"""Make a language model forget with Distribution Preference Optimization, and measure what it forgot and kept.

The public names are loaded on first use, so that ``import dipo_lightning`` is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DiPOModule": "dipo_lightning.methods.dipo.module",
    "UnlearningModule": "dipo_lightning.methods.unlearning",
    "NPOModule": "dipo_lightning.methods.preference",
    "SimNPOModule": "dipo_lightning.methods.preference",
    "DPOModule": "dipo_lightning.methods.preference",
    "IdkDPOModule": "dipo_lightning.methods.preference",
    "GradAscentModule": "dipo_lightning.methods.gradient_ascent",
    "GradDiffModule": "dipo_lightning.methods.gradient_ascent",
    "KLModule": "dipo_lightning.methods.gradient_ascent",
    "WGAModule": "dipo_lightning.methods.gradient_ascent",
    "CEUModule": "dipo_lightning.methods.gradient_ascent",
    "UNDIALModule": "dipo_lightning.methods.undial",
    "SelectiveModule": "dipo_lightning.methods.selective.module",
    "RMUModule": "dipo_lightning.methods.rmu",
    "FineTuningModule": "dipo_lightning.methods.finetuning",
    "LanguageModelModule": "dipo_lightning.methods.language_model",
    "UnlearningDataModule": "dipo_lightning.data.unlearning",
    "FineTuningDataModule": "dipo_lightning.data.unlearning",
    "TOFUDataModule": "dipo_lightning.benchmarks.tofu.datamodule",
    "TOFUFineTuningDataModule": "dipo_lightning.benchmarks.tofu.datamodule",
    "MUSEDataModule": "dipo_lightning.benchmarks.muse.datamodule",
    "TOFUEvaluation": "dipo_lightning.benchmarks.tofu.callback",
    "MemorizationEvaluation": "dipo_lightning.benchmarks.user_data.callback",
    "MUSEEvaluation": "dipo_lightning.benchmarks.muse.callback",
    "RobustnessEvaluation": "dipo_lightning.benchmarks.robustness.callback",
    "Measuring": "dipo_lightning.evaluation.rows",
    "Schedule": "dipo_lightning.evaluation.schedule",
    "StopAtThreshold": "dipo_lightning.callbacks.stopping",
    "StopOnCollapse": "dipo_lightning.callbacks.stopping",
    "ExportModel": "dipo_lightning.callbacks.export",
    "ResultsPage": "dipo_lightning.callbacks.results_page",
    "TrackioLogger": "dipo_lightning.evaluation.trackers",
    "FSDP2Strategy": "dipo_lightning.models.sharding",
    "InputError": "dipo_lightning.errors",
    "RunError": "dipo_lightning.errors",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
