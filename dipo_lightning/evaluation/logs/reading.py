"""Read an evaluation log of any of the known formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs.authors import is_authors_log, read_authors_log
from dipo_lightning.evaluation.logs.log import EvaluationLog
from dipo_lightning.evaluation.logs.native import NATIVE_FORMATS, read_native_log
from dipo_lightning.evaluation.logs.open_unlearning import (
    is_open_unlearning_log,
    is_open_unlearning_muse_log,
    read_open_unlearning_log,
    read_open_unlearning_muse_log,
    refuse_summary,
)


def read_log(path: str | Path) -> EvaluationLog:
    """Read a log, whichever of the known formats it has.

    Args:
        path: This package's own JSON log, open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json, or TOFU's
            eval_log_aggregated.json; or the folder of a run, whose last evaluation is read.

    Returns:
        Its rows and what is known about them.

    Raises:
        InputError: There is no such file, it is not JSON or cut off, its format is unknown, or it lacks something.
    """
    path = Path(path)
    if path.is_dir():
        path = last_evaluation(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: an evaluation log is a JSON object, this is a {type(content).__name__}")
    if "format" in content:
        if content["format"] not in NATIVE_FORMATS:
            raise InputError(
                f"{path}: unknown format {content['format']!r}; this version reads {', '.join(NATIVE_FORMATS)}"
            )
        return read_native_log(content, path)
    if is_authors_log(content):
        return read_authors_log(content, path)
    refuse_summary(content, path)
    if is_open_unlearning_muse_log(content):
        return read_open_unlearning_muse_log(content, path)
    if is_open_unlearning_log(content):
        return read_open_unlearning_log(content, path)
    keys = ", ".join(list(content)[:5]) or "none"
    raise InputError(
        f"{path}: unknown format (its keys: {keys}). Known are logs of this package, open-unlearning's TOFU_EVAL.json "
        "and MUSE_EVAL.json, and TOFU's eval_log_aggregated.json."
    )


def last_evaluation(folder: Path) -> Path:
    """Return the evaluation that was written last anywhere in ``folder``.

    Raises:
        InputError: There is none.
    """
    logs = [*folder.glob("*.json"), *folder.glob("**/evaluations/*.json")]
    if not logs:
        raise InputError(f"{folder}: no evaluation log in this folder; name a log, or a run that evaluated its model")
    return max(logs, key=lambda log: (log.stat().st_mtime_ns, log.name))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a JSON file (byte {error.start} is not UTF-8 text)") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) - 1 or "Unterminated string" in error.msg:
            raise InputError(
                f"{path}: the file is cut off at line {error.lineno}, column {error.colno}: was its evaluation "
                "interrupted, or its download?"
            ) from error
        raise InputError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
