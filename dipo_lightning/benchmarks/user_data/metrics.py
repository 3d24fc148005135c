"""From the rows of one's own data to the numbers: memory of what must go, and of what must stay."""

from __future__ import annotations

from typing import Any

import torch

from dipo_lightning.benchmarks.tofu.metrics import row_log_ratio
from dipo_lightning.evaluation.columns import absent, column, generation_aggregates, mean_of_numbers
from dipo_lightning.evaluation.logs.log import USER_DATA_FORMAT, Rows, Sets
from dipo_lightning.metrics.functional.model_utility import harmonic_mean
from dipo_lightning.metrics.functional.probability import answer_probability
from dipo_lightning.metrics.functional.truth_ratio import (
    check_truth_ratio_variant,
    forget_truth_ratio,
    utility_truth_ratio,
)

__all__ = ["MEMORY", "USER_DATA_FORMAT", "user_data_aggregates"]
MEMORY = ("exact_memorization", "extraction_strength", "min_k", "min_k_plus_plus")
"""Scores of single answers, averaged over the rows of a set."""


def user_data_aggregates(sets: Sets, truth_ratio: str = "geometric") -> dict[str, Any]:
    """All aggregates of an evaluation on a user's own rows; no retain model is needed.

    Args:
        sets: Rows of `forget` and, where there are any, `retain`.
        truth_ratio: `geometric`, `arithmetic` or `open_unlearning`; over the rows that have wrong answers.

    Returns:
        `forget_probability`, `forget_rouge`, `forget_exact_memorization`, ... and the same of `retain`, each where its
        rows have it; and `utility`, the harmonic mean of the retain rows' probability, ROUGE-L recall and truth ratio
        (of those that were measured), or None with the reason under `utility_absent`. Plain Python numbers.

    Raises:
        InputError: There is no such variant of the truth ratio.
    """
    check_truth_ratio_variant(truth_ratio)
    result: dict[str, Any] = {}
    for name, rows in sets.items():
        result |= {f"{name}_{part}": value for part, value in _parts(name, rows, truth_ratio).items()}
    return _utility(result) | result


def _parts(name: str, rows: Rows, truth_ratio: str) -> dict[str, float]:
    """Mean of every number that some row of the set has."""
    means = {
        "probability": mean_of_numbers(answer_probability(column(rows, "nll"))),
        "rouge": mean_of_numbers(column(rows, "rouge_l_recall")),
        **{key: mean_of_numbers(column(rows, key)) for key in MEMORY},
        **generation_aggregates(rows),
    }
    ratios = [row_log_ratio(row, truth_ratio) for row in rows if row.get("wrong_nll")]
    log_ratio = torch.tensor(ratios, dtype=torch.float64)
    log_ratio = log_ratio[~log_ratio.isnan()]
    if log_ratio.numel():
        forgets = name == "forget"
        whole = forget_truth_ratio(log_ratio, truth_ratio) if forgets else utility_truth_ratio(log_ratio)
        means["truth_ratio"] = float(whole)
    return {part: value for part, value in means.items() if value is not None}


def _utility(parts: dict[str, Any]) -> dict[str, Any]:
    measured = [parts[name] for name in ("retain_probability", "retain_rouge", "retain_truth_ratio") if name in parts]
    if not measured:
        return absent("utility", "there are no retain rows to measure it on")
    return {"utility": float(harmonic_mean(torch.tensor(measured, dtype=torch.float64)))}
