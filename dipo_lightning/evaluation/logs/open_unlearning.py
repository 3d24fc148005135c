"""open-unlearning's logs: for each metric an `agg_value` and a `value_by_index`.

A row is put together from several metrics; a benchmark says from which. Metrics that it does not know are passed over,
whatever they hold: forks write their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.rows import Row

ATTACKS = {
    "mia_loss": "loss",
    "mia_zlib": "zlib",
    "mia_min_k": "min_k",
    "mia_min_k_plus_plus": "min_k_plus_plus",
    "mia_gradnorm": "gradnorm",
    "mia_reference": "reference",
}
"""The field of a row that holds an attack's score, by the attack's name in such a log."""


def is_summary(content: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a JSON object is a ``..._SUMMARY.json``: a plain number for each metric, some of ``names``."""
    numbers = [name for name, value in content.items() if isinstance(value, int | float) and name in names]
    return bool(numbers) and not any(isinstance(value, Mapping) for value in content.values())


def refuse_summary(content: Mapping[str, Any], names: Collection[str], path: Path) -> None:
    """Refuse a summary.

    Raises:
        InputError: It is one.
    """
    if is_summary(content, names):
        raise InputError(
            f"{path}: a summary, with one number for {', '.join(list(content)[:3])} and no values by row; is this "
            "TOFU_SUMMARY.json or MUSE_SUMMARY.json? Give the TOFU_EVAL.json or MUSE_EVAL.json beside it."
        )


def stored_aggregates(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a log's own `agg_value`s by its own names."""
    return {name: metric["agg_value"] for name, metric in content.items() if has_aggregate(metric)}


def not_empty(sets: Mapping[str, list[Any]], path: Path) -> dict[str, list[Row]]:
    """The sets that have rows, in the order of their indices."""
    found = {name: sorted(rows, key=lambda row: row["index"]) for name, rows in sets.items() if rows}
    if not found:
        raise InputError(f"{path}: no metric has values by row (`value_by_index`); evaluate the model again")
    return found


def samples(content: Mapping[str, Any], metric: str, path: Path) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Scores of a membership attack by sample: the forget rows and the holdout rows."""
    attack = content.get(metric)
    samples = attack if isinstance(attack, Mapping) else {}
    return {name: by_index(f"{metric}.{name}", samples.get(name), path) for name in ("forget", "holdout")}


def has_aggregate(metric: Any) -> bool:
    """Return whether this is a metric of such a log."""
    return isinstance(metric, Mapping) and "agg_value" in metric


def by_index(name: str, metric: Any, path: Path) -> dict[int, Mapping[str, Any]]:
    """Values of a metric by row; a row without any holds nothing."""
    table = metric.get("value_by_index") if isinstance(metric, Mapping) else None
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        raise InputError(f"{path}: {name}.value_by_index should be keyed by row number, got {type(table).__name__}")
    return {
        row_number(f"{path}: {name}.value_by_index", index): value if isinstance(value, Mapping) else {}
        for index, value in table.items()
    }


def add_numbers(rows: list[Any], field: str, table: Mapping[int, Mapping[str, Any]]) -> None:
    """Give rows a metric's `score`, making those that are not there yet.

    Args:
        rows: Of one set, changed in place.
        field: Where the number goes.
        table: The metric's values by row.
    """
    known = {row["index"]: row for row in rows}
    for index, value in table.items():
        if index not in known:
            known[index] = {"index": index}
            rows.append(known[index])
        known[index][field] = value.get("score")


def mean(numbers: Any) -> Any:
    """Return a number, or the mean of several: open-unlearning has one for each paraphrase or wrong answer."""
    if not isinstance(numbers, list):
        return numbers
    return None if not numbers or None in numbers else sum(numbers) / len(numbers)


def row_number(where: str, key: str) -> int:
    """Return the row that a key names: `"3"`, or `"3.0"` as pandas writes it.

    Raises:
        InputError: It names none.
    """
    whole = re.fullmatch(r"(\d+)(\.0+)?", key)
    if whole is None:
        raise InputError(f"{where} should be keyed by row number, got {key!r}")
    return int(whole[1])
