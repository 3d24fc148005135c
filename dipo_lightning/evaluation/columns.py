"""Columns of numbers from rows (dicts); what a row does not have is NaN.

From rows to what a model's own answers are like as language: fluency and perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dipo_lightning.evaluation.logs.log import Row, Rows
from dipo_lightning.metrics.functional.fluency import ngram_entropy, perplexity


def number(value: Any) -> float:
    """A JSON number as float; null or absent is NaN."""
    return math.nan if value is None else float(value)


def column(rows: Sequence[Row], key: str) -> Tensor:
    """One number of each row.

    Args:
        rows: n rows.
        key: Which number.

    Returns:
        (n,) float64, NaN where the row has none.
    """
    return torch.tensor([number(row.get(key)) for row in rows], dtype=torch.float64)


def numbers(row: Row, key: str) -> Tensor:
    """A list of numbers of one row.

    Args:
        row: One row.
        key: Which list.

    Returns:
        (K,) float64; a single NaN where the row has no such list, or an empty one.
    """
    values = [number(value) for value in row.get(key) or [None]]
    return torch.tensor(values, dtype=torch.float64)


def mean_of_numbers(values: Tensor) -> float | None:
    """Mean of the values that are numbers; None where there is none.

    Args:
        values: (n,) float, with NaN for what could not be scored.

    Returns:
        A plain float, fit for JSON.
    """
    scored = values[~values.isnan()]
    return float(scored.mean()) if scored.numel() else None


def absent(name: str, reason: str) -> dict[str, Any]:
    """An aggregate that cannot be computed, and why, under the names in which results carry both.

    Args:
        name: Of the aggregate.
        reason: Why there is no number.

    Returns:
        `{name: None, name_absent: reason}`.
    """
    return {name: None, f"{name}_absent": reason}


def flat_numbers(aggregates: Mapping[str, Any]) -> dict[str, float]:
    """Every number among aggregates under one name; those of a group, `{"a": {"p": 1}}`, as `a_p`.

    Args:
        aggregates: Of an evaluation; what is no number is left out.
    """
    found: dict[str, float] = {}
    for name, value in aggregates.items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, one in parts.items():
            if isinstance(one, int | float) and not isinstance(one, bool):
                found[f"{name}_{part}" if part else name] = float(one)
    return found


def generation_aggregates(rows: Rows) -> dict[str, float]:
    """Fluency and perplexity of what was said to the questions of a set.

    Args:
        rows: With `generation`, and for the perplexity `generation_nll` and `generation_tokens`, which logs of other
            packages don't have.

    Returns:
        `fluency` (bits, the mean over the rows that were answered) and `perplexity` (over all tokens said; 1 or more),
        each where rows have it.
    """
    result = {}
    texts = [str(row["generation"]) for row in rows if row.get("generation") is not None]
    if texts:
        result["fluency"] = float(ngram_entropy(texts).mean())
    nll, tokens = column(rows, "generation_nll"), column(rows, "generation_tokens")
    said = ~nll.isnan()
    if said.any():
        result["perplexity"] = float(perplexity(nll[said], tokens[said]))
    return result
