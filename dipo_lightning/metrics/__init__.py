"""Measurements of forgetting: pure functions (`functional`), and torchmetrics classes over evaluated rows.

A custom metric is any `torchmetrics.Metric` with ``update(rows)`` (see `rows`); subclassing `RowMean` is the shortest
way to one.
"""

from dipo_lightning.metrics.base import Meaning, RowMean, RowSet, RowValues
from dipo_lightning.metrics.likelihood import (
    ForgetQuality,
    ModelUtility,
    Probability,
    ROUGERecall,
    TruthProbability,
    TruthRatio,
)
from dipo_lightning.metrics.membership import (
    ExactMemorization,
    ExtractionStrength,
    MembershipAUC,
    MinK,
    MinKPlusPlus,
    PairAUCs,
    PrivLeak,
    ReferenceAUC,
)
from dipo_lightning.metrics.text import Fluency, ParaphraseROUGE, Perplexity, PerturbedROUGE

__all__ = [
    "ExactMemorization",
    "ExtractionStrength",
    "Fluency",
    "ForgetQuality",
    "Meaning",
    "MembershipAUC",
    "MinK",
    "MinKPlusPlus",
    "ModelUtility",
    "PairAUCs",
    "ParaphraseROUGE",
    "Perplexity",
    "PerturbedROUGE",
    "PrivLeak",
    "Probability",
    "ROUGERecall",
    "ReferenceAUC",
    "RowMean",
    "RowSet",
    "RowValues",
    "TruthProbability",
    "TruthRatio",
]
