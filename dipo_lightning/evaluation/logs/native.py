"""This package's own logs: `dipo-lightning/tofu/1`, `dipo-lightning/muse/1` and `dipo-lightning/user_data/1`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs.log import MUSE_FORMAT, TOFU_FORMAT, USER_DATA_FORMAT, EvaluationLog, unique_rows

NATIVE_FORMATS = (TOFU_FORMAT, MUSE_FORMAT, USER_DATA_FORMAT)

_TOFU_ROW: tuple[str, ...] = ("nll", "correct_nll", "wrong_nll", "rouge_l_recall")
# What a row of a set must have; its value may be null where it could not be scored.
_ROUGE_ROW: tuple[str, ...] = ("rouge",)
_MIN_K_ROW: tuple[str, ...] = ("min_k",)
_REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    TOFU_FORMAT: dict.fromkeys(("forget", "retain", "real_authors", "world_facts"), _TOFU_ROW) | {"holdout": ()},
    MUSE_FORMAT: dict.fromkeys(("verbmem", "knowmem_forget", "knowmem_retain"), _ROUGE_ROW)
    | dict.fromkeys(("privleak_forget", "privleak_retain", "privleak_holdout"), _MIN_K_ROW),
    USER_DATA_FORMAT: dict.fromkeys(("forget", "retain"), ("nll",)),
}
_NUMBERS = (
    *("nll", "correct_nll", "rouge_l_recall", "exact_memorization", "extraction_strength", "min_k"),
    *("min_k_plus_plus", "zlib", "loss", "reference", "rouge"),
    *("generation_nll", "generation_tokens"),
)


def read_native_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """A log of this package.

    Args:
        content: The JSON object, with a known `format`.
        path: Where it came from, for messages.

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
    required = _REQUIRED[content["format"]]
    unknown = [name for name in content["sets"] if name not in required]
    if unknown:
        raise InputError(f"{path}: unknown sets {', '.join(unknown)}; {content['format']} has {', '.join(required)}")
    sets = {name: _rows(name, rows, required[name], path) for name, rows in content["sets"].items()}
    skipped = {name: _rows(name, rows, (), path) for name, rows in (content.get("skipped") or {}).items()}
    return EvaluationLog(
        format=content["format"],
        settings=dict(content["settings"]),
        sets=sets,
        skipped=skipped,
        aggregates=dict(content.get("aggregates") or {}),
        provenance=dict(content.get("provenance") or {}),
        path=path,
    )


def _rows(name: str, rows: Any, required: tuple[str, ...], path: Path) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{path}: set {name!r} should be a list of rows")
    checked = []
    for row in unique_rows(f"{path}: set {name!r}", rows):
        where = f"{path}: set {name!r}, row {row['index']}"
        missing = [key for key in required if key not in row]
        if missing:
            raise InputError(f"{where} has no {', '.join(missing)}")
        for key in _NUMBERS:
            if not _is_number(row.get(key)):
                raise InputError(f"{where}: {key} should be a number or null, got {row[key]!r}")
        wrong = row.get("wrong_nll")
        if wrong is not None and not (isinstance(wrong, list) and all(_is_number(value) for value in wrong)):
            raise InputError(f"{where}: wrong_nll should be a list of numbers, got {wrong!r}")
        checked.append(dict(row))
    return checked


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
