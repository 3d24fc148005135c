"""Read an evaluation log of any of the known formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.benchmark import find_benchmark, installed_benchmarks
from dipo_lightning.evaluation.logs.native import check_numbers, read_native_log
from dipo_lightning.evaluation.rows import EvaluationLog
from dipo_lightning.safety.network import bounded_hub, hub_errors

HUB_LOGS = "open-unlearning/eval"
"""Data set on the hub that holds open-unlearning's logs, a folder for each model."""


def read_log(path: str | Path, usual: str = "") -> EvaluationLog:
    """Read a log, whichever of the known formats it has.

    Args:
        path: This package's own JSON log, one of another package that a benchmark knows, the folder of a run, whose
            last evaluation is read, or a log in `HUB_LOGS`: ``open-unlearning/eval/FOLDER/FILE``.
        usual: The file in `HUB_LOGS` that is meant where ``path`` names the data set alone.

    Returns:
        Its rows and what is known about them.

    Raises:
        InputError: There is no such file, it is not JSON or cut off, its format is unknown, or it lacks something.
    """
    path = Path(path)
    if not path.exists() and (path.as_posix() + "/").startswith(f"{HUB_LOGS}/"):
        path = _from_hub(path.as_posix().removeprefix(HUB_LOGS).strip("/") or usual)
    if path.is_dir():
        path = last_evaluation(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: an evaluation log is a JSON object, this is a {type(content).__name__}")
    known = installed_benchmarks()
    if "format" in content:
        benchmark = find_benchmark(str(content["format"]), str(content.get("benchmark") or ""))
        if benchmark is None or benchmark.format != content["format"]:
            named = content.get("benchmark")
            raise InputError(
                f"{path}: unknown format {content['format']!r}; this version reads "
                f"{', '.join(one.format for one in known)}"
                + (f", and the class that the log names, {named}, cannot be imported here" if named else "")
            )
        return read_native_log(content, path, benchmark)
    for one in known:
        for foreign in one.foreign_formats:
            if foreign.recognises(content):
                log = foreign.read(content, path)
                check_numbers(one, log.sets, path)
                return log
    keys = ", ".join(list(content)[:5]) or "none"
    raise InputError(
        f"{path}: unknown format (its keys: {keys}). Known are logs of this package and "
        f"{', '.join(one.file for benchmark in known for one in benchmark.foreign_formats)}."
    )


def _from_hub(file: str) -> Path:
    """Fetch a log of `HUB_LOGS`, or take the copy that was fetched before.

    Raises:
        InputError: No file is named, there is none of that name, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    if not file:
        raise InputError(
            f"{HUB_LOGS} holds the logs of many models, and nothing here says which is meant; name it: "
            f"{HUB_LOGS}/tofu_Llama-3.2-1B-Instruct_retain90/TOFU_EVAL.json."
        )
    try:
        with bounded_hub():
            return Path(hf_hub_download(HUB_LOGS, file, repo_type="dataset"))
    except (*hub_errors(), ValueError) as error:  # no network, no such file; a name that can't be one
        raise InputError(
            f"The hub did not give {file} of the data set {HUB_LOGS}: {str(error).splitlines()[0]} Check the name and "
            "the network, or give a file."
        ) from error


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
        text = path.read_text(encoding="utf-8-sig")
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
