"""This package's own logs, one format per benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_type_hints

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.benchmark import Benchmark
from dipo_lightning.evaluation.rows import EvaluationLog, Row, unique_rows


def read_native_log(content: Mapping[str, Any], path: Path, benchmark: Benchmark) -> EvaluationLog:
    """A log of this package.

    Args:
        content: The JSON object, of the benchmark's format.
        path: Where it came from, for messages.
        benchmark: The benchmark of its format.

    Returns:
        The log.

    Raises:
        InputError: A key is missing, a set is unknown, a row stands twice or has a value of the wrong kind.
    """
    for key in ("settings", "sets"):
        if not isinstance(content.get(key), Mapping):
            raise InputError(f"{path}: the log has no {key!r} (an object): it is incomplete, evaluate the model again")
    for key in ("skipped", "aggregates", "provenance"):
        if content.get(key) is not None and not isinstance(content[key], Mapping):
            raise InputError(f"{path}: {key!r} should be an object, got {content[key]!r}")
    required = {one.name: one.required for one in benchmark.sets_of(content["settings"])}
    unknown = [name for name in content["sets"] if name not in required]
    if unknown:
        raise InputError(f"{path}: unknown sets {', '.join(unknown)}; {content['format']} has {', '.join(required)}")
    sets = {name: _rows(name, rows, required[name], path) for name, rows in content["sets"].items()}
    skipped = {name: _rows(name, rows, (), path) for name, rows in (content.get("skipped") or {}).items()}
    check_numbers(benchmark, sets | skipped, path)
    return EvaluationLog(
        format=content["format"],
        settings=dict(content["settings"]),
        sets=sets,
        skipped=skipped,
        aggregates=dict(content.get("aggregates") or {}),
        provenance=dict(content.get("provenance") or {}),
        path=path,
        benchmark=str(content.get("benchmark") or ""),
    )


def check_numbers(benchmark: Benchmark, sets: Mapping[str, list[Row]], path: Path | None) -> None:
    """Refuse rows of a log, of whatever format, whose numbers are none.

    Raises:
        InputError: Naming the first such value.
    """
    numbers = [name for name, kind in get_type_hints(benchmark.row).items() if kind == float | None]
    for name, rows in sets.items():
        for row in rows:
            where, values = f"{path}: set {name!r}, row {row['index']}", cast("Mapping[str, Any]", row)
            for key in numbers:
                if not _is_number(values.get(key)):
                    raise InputError(f"{where}: {key} should be a number or null, got {values[key]!r}")
            wrong = values.get("wrong_nll")
            if wrong is not None and not (isinstance(wrong, list) and all(_is_number(value) for value in wrong)):
                raise InputError(f"{where}: wrong_nll should be a list of numbers, got {wrong!r}")


def _rows(name: str, rows: Any, required: tuple[str, ...], path: Path) -> list[Row]:
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{path}: set {name!r} should be a list of rows")
    checked = []
    for row in unique_rows(f"{path}: set {name!r}", rows):
        where = f"{path}: set {name!r}, row {row['index']}"
        values: Mapping[str, Any] = row
        missing = [key for key in required if key not in values]
        if missing:
            raise InputError(f"{where} has no {', '.join(missing)}")
        checked.append(cast("Row", dict(values)))
    return checked


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
