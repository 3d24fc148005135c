"""Columns of numbers from rows (dicts); what a row does not have is NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dipo_lightning.metrics.logs.log import Row


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
