"""Make a language model forget with Distribution Preference Optimization, and measure what it forgot and kept.

The public names are loaded on first use, so that ``import dipo_lightning`` is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DiPOModule": "dipo_lightning.modules.dipo",
    "UnlearningModule": "dipo_lightning.modules.unlearning",
    "NPOModule": "dipo_lightning.modules.preference",
    "SimNPOModule": "dipo_lightning.modules.preference",
    "DPOModule": "dipo_lightning.modules.preference",
    "IdkDPOModule": "dipo_lightning.modules.preference",
    "GradAscentModule": "dipo_lightning.modules.ascent",
    "GradDiffModule": "dipo_lightning.modules.ascent",
    "KLModule": "dipo_lightning.modules.ascent",
    "WGAModule": "dipo_lightning.modules.ascent",
    "CEUModule": "dipo_lightning.modules.ascent",
    "UNDIALModule": "dipo_lightning.modules.undial",
    "RMUModule": "dipo_lightning.modules.rmu",
    "FineTuningModule": "dipo_lightning.modules.finetuning",
    "LanguageModelModule": "dipo_lightning.modules.language_model",
    "UnlearningDataModule": "dipo_lightning.data.unlearning",
    "FineTuningDataModule": "dipo_lightning.data.unlearning",
    "TOFUDataModule": "dipo_lightning.data.tofu_module",
    "TOFUFineTuningDataModule": "dipo_lightning.data.tofu_module",
    "MUSEDataModule": "dipo_lightning.data.muse_module",
    "TOFUEvaluation": "dipo_lightning.callbacks.tofu",
    "MemorizationEvaluation": "dipo_lightning.callbacks.own_data",
    "MUSEEvaluation": "dipo_lightning.callbacks.muse",
    "StopAtThreshold": "dipo_lightning.callbacks.stopping",
    "StopOnCollapse": "dipo_lightning.callbacks.collapse",
    "ExportModel": "dipo_lightning.callbacks.export",
    "ResultsPage": "dipo_lightning.callbacks.results_page",
    "FSDP2Strategy": "dipo_lightning.sharding",
    "InputError": "dipo_lightning.errors",
    "RunError": "dipo_lightning.errors",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load a public name from its module."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
