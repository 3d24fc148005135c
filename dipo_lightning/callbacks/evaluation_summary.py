"""The short table that is printed after an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def summary_table(
    title: str,
    before: dict[str, float] | None,
    now: dict[str, float],
    names: Mapping[str, str],
    document: Mapping[str, Any],
    absent: Mapping[str, str],
) -> str:
    """Write the table, then what is missing from it and why.

    Args:
        title: What was measured; the epoch and step are added.
        before: Scalars of the first evaluation of the run; None in that evaluation itself.
        now: Scalars of this one.
        names: What is shown, by scalar name.
        document: This evaluation.
        absent: What may be missing, by the name of its aggregate; ``NAME_absent`` beside it is the reason.
    """
    where = document["provenance"]
    lines = [comparison_table(f"{title}, epoch {where['epoch']}, step {where['step']}:", before, now, names)]
    for name, label in absent.items():
        if reason := document["aggregates"].get(f"{name}_absent"):
            lines.append(f"  No {label}: {reason}.")
    lines += [f"  {len(rows)} rows of {name} have no value and were left out (see `skipped` in the file)."
              for name, rows in document["skipped"].items()]  # fmt: skip
    return "\n".join(lines)


def comparison_table(
    title: str, before: dict[str, float] | None, now: dict[str, float], names: Mapping[str, str]
) -> str:
    """Write a short table: a title, then each named scalar now, and before where there was one.

    Args:
        title: First line.
        before: Scalars of the first evaluation of the run; None in that evaluation itself.
        now: Scalars of this one.
        names: What is shown, by scalar name.
    """

    def cell(values: dict[str, float], name: str) -> str:
        value = values.get(name, math.nan)
        return f"{'-' if math.isnan(value) else f'{value:.4g}':>12}"

    lines = [title] if before is None else [title, f"  {'':<28}{'first':>12}{'now':>12}"]
    for name, label in names.items():
        if name not in now and name not in (before or {}):
            continue  # not measured in this run
        lines.append(f"  {label:<28}{'' if before is None else cell(before, name)}{cell(now, name)}")
    return "\n".join(lines)
