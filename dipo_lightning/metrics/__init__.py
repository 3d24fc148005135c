"""Measurements of forgetting: pure functions (`functional`), torchmetrics classes over them, and logs of rows.

The classes are loaded when they are first asked for: torchmetrics takes seconds to import, and scoring a log needs
only the functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dipo_lightning.metrics.likelihood import (
        ForgetQuality,
        ModelUtility,
        NormalizedProbability,
        Probability,
        TruthRatio,
    )
    from dipo_lightning.metrics.membership import MembershipAUC, PrivLeak
    from dipo_lightning.metrics.memorization import ExactMemorization, ExtractionStrength
    from dipo_lightning.metrics.rows import RowMean, RowValues
    from dipo_lightning.metrics.text import Fluency, KnowMem, Perplexity, ROUGERecall, VerbMem

_HOMES = {
    "ForgetQuality": "likelihood",
    "ModelUtility": "likelihood",
    "NormalizedProbability": "likelihood",
    "Probability": "likelihood",
    "TruthRatio": "likelihood",
    "MembershipAUC": "membership",
    "PrivLeak": "membership",
    "ExactMemorization": "memorization",
    "ExtractionStrength": "memorization",
    "RowMean": "rows",
    "RowValues": "rows",
    "Fluency": "text",
    "KnowMem": "text",
    "Perplexity": "text",
    "ROUGERecall": "text",
    "VerbMem": "text",
}

__all__ = [
    "ExactMemorization",
    "ExtractionStrength",
    "Fluency",
    "ForgetQuality",
    "KnowMem",
    "MembershipAUC",
    "ModelUtility",
    "NormalizedProbability",
    "Perplexity",
    "PrivLeak",
    "Probability",
    "ROUGERecall",
    "RowMean",
    "RowValues",
    "TruthRatio",
    "VerbMem",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
