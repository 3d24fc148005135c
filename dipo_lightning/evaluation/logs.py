"""Evaluation logs of this package and of open-unlearning: reading, and checks that two logs are comparable."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast, get_type_hints

from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.benchmark import Benchmark, find_benchmark, installed_benchmarks
from dipo_lightning.evaluation.rows import EvaluationLog, Row, unique_rows, with_skipped
from dipo_lightning.safety.network import bounded_hub, hub_errors
from dipo_lightning.safety.paths import with_home


def read_native_log(content: Mapping[str, Any], path: Path, benchmark: Benchmark) -> EvaluationLog:
    """Read a log of this package from its JSON object; ``path`` is for messages.

    Raises:
        InputError: A key is missing, a set is unknown, a row occurs twice or has a value of the wrong kind.
    """
    for key in ("settings", "sets"):
        if not isinstance(content.get(key), Mapping):
            raise InputError(f"{path}: the log has no {key!r} (an object): it is incomplete, evaluate the model again")
    for key in ("skipped", "aggregates", "provenance"):
        if content.get(key) is not None and not isinstance(content[key], Mapping):
            raise InputError(f"{path}: {key!r} should be an object, got {content[key]!r}")
    if not isinstance(content["settings"].get("metrics") or {}, Mapping):
        raise InputError(f"{path}: settings.metrics should be an object, got {content['settings']['metrics']!r}")
    required = {one.name: one.required for one in benchmark.sets_of(content["settings"])}
    unknown = [name for name in content["sets"] if name not in required]
    if unknown:
        raise InputError(f"{path}: unknown sets {', '.join(unknown)}; {content['format']} has {', '.join(required)}")
    sets = {name: _rows(name, rows, required[name], path) for name, rows in content["sets"].items()}
    skipped = {name: _rows(name, rows, (), path) for name, rows in (content.get("skipped") or {}).items()}
    check_values(benchmark, sets | skipped, path)
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


def check_values(benchmark: Benchmark, sets: Mapping[str, list[Row]], path: Path | None) -> None:
    """Refuse a log, of any format, whose rows hold values of the wrong type.

    Raises:
        InputError: There is such a value; the message names the first.
    """
    hints = get_type_hints(benchmark.row)
    numbers = [name for name, kind in hints.items() if kind == float | None]
    texts = [name for name, kind in hints.items() if kind in (str, str | None)]
    for name, rows in sets.items():
        for row in rows:
            where, values = f"{path}: set {name!r}, row {row['index']}", cast("Mapping[str, Any]", row)
            for key in numbers:
                if not _is_number(values.get(key)):
                    raise InputError(f"{where}: {key} should be a number or null, got {values[key]!r}")
                if "rouge" in key and (values.get(key) or 0) < 0:
                    raise InputError(f"{where}: {key} should not be negative, got {values[key]!r}")
            for key in texts:
                if not isinstance(values.get(key), str | None):
                    raise InputError(f"{where}: {key} should be a text or null, got {values[key]!r}")
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


ATTACK_METRICS = {
    "mia_loss": "loss",
    "mia_zlib": "zlib",
    "mia_min_k": "min_k",
    "mia_min_k_plus_plus": "min_k_plus_plus",
    "mia_gradnorm": "gradnorm",
    "mia_reference": "reference",
}
"""Fields of a row for the scores of attacks, by their names in open-unlearning's logs."""


def is_summary(content: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a JSON object is a ``..._SUMMARY.json``: a plain number per metric, some of them in ``names``."""
    numbers = [name for name, value in content.items() if isinstance(value, int | float) and name in names]
    return bool(numbers) and not any(isinstance(value, Mapping) for value in content.values())


def refuse_summary(content: Mapping[str, Any], names: Collection[str], path: Path) -> None:
    """Raise an `InputError` if a JSON object is a summary."""
    if is_summary(content, names):
        raise InputError(
            f"{path}: this is a summary, with one number for {', '.join(list(content)[:3])} and no values by row. "
            "Give the TOFU_EVAL.json or MUSE_EVAL.json beside it."
        )


def stored_aggregates(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `agg_value`s that a log stores, by the log's own metric names."""
    return {name: metric["agg_value"] for name, metric in content.items() if has_aggregate(metric)}


def not_empty(sets: Mapping[str, list[Any]], path: Path) -> dict[str, list[Row]]:
    """Return the sets that have rows, sorted by index."""
    found = {name: sorted(rows, key=lambda row: row["index"]) for name, rows in sets.items() if rows}
    if not found:
        raise InputError(f"{path}: no metric has values by row (`value_by_index`); evaluate the model again")
    return found


def samples(content: Mapping[str, Any], metric: str, path: Path) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Return the scores of a membership attack by sample: the forget rows and the holdout rows."""
    attack = content.get(metric)
    samples = attack if isinstance(attack, Mapping) else {}
    return {name: by_index(f"{metric}.{name}", samples.get(name), path) for name in ("forget", "holdout")}


def has_aggregate(metric: Any) -> bool:
    """Return whether a value is a metric of an open-unlearning log: an object with `agg_value`."""
    return isinstance(metric, Mapping) and "agg_value" in metric


def by_index(name: str, metric: Any, path: Path) -> dict[int, Mapping[str, Any]]:
    """Return the values of a metric by row number, with an empty object for a row without values."""
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
    """Add a metric's `score` to the rows of one set as ``field``, in place; missing rows are added."""
    known = {row["index"]: row for row in rows}
    for index, value in table.items():
        if index not in known:
            known[index] = {"index": index}
            rows.append(known[index])
        known[index][field] = value.get("score")


def mean(numbers: Any) -> Any:
    """Return a number, or the mean of several; open-unlearning has one per paraphrase or wrong answer.

    Anything else is returned as it is, for `check_values`.
    """
    if not isinstance(numbers, list) or not all(map(_is_number, numbers)):
        return numbers
    return None if not numbers or None in numbers else sum(numbers) / len(numbers)


def row_number(where: str, key: str) -> int:
    """Return the row number of a key: `"3"`, or `"3.0"` as pandas writes it."""
    whole = re.fullmatch(r"(\d+)(\.0+)?", key)
    if whole is None:
        raise InputError(f"{where} should be keyed by row number, got {key!r}")
    return int(whole[1])


HUB_LOGS = "open-unlearning/eval"
"""Data set on the hub with open-unlearning's logs, in a folder per model."""


def read_log(path: str | Path, usual: str = "", benchmark: Benchmark | None = None) -> EvaluationLog:
    """Read a log of any of the known formats.

    Args:
        path: A JSON log of this package or of another that a benchmark knows, the folder of one run, whose last
            evaluation is read, or a log in `HUB_LOGS`: ``open-unlearning/eval/FOLDER/FILE``.
        usual: File in `HUB_LOGS` to read if ``path`` names the data set alone.
        benchmark: Benchmark whose evaluation is preferred in a folder with several; None takes the last of any.

    Raises:
        InputError: There is no such file, it is not JSON or is truncated, its format is unknown, it is incomplete, or
            a folder holds several runs.
    """
    path = with_home(path)
    if not path.exists() and (path.as_posix() + "/").startswith(f"{HUB_LOGS}/"):
        path = _from_hub(path.as_posix().removeprefix(HUB_LOGS).strip("/") or usual)
    if path.is_dir():
        path = last_evaluation(path, benchmark)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: an evaluation log is a JSON object, this is a {type(content).__name__}")
    known = installed_benchmarks()
    if "format" in content:
        benchmark = find_benchmark(str(content["format"]), str(content.get("benchmark") or ""))
        if benchmark is None or benchmark.format != content["format"]:
            named = content.get("benchmark") if benchmark is None else None
            reads = ", ".join(one.format for one in ([benchmark] if benchmark else known))
            raise InputError(
                f"{path}: unknown format {content['format']!r}; this version reads {reads}"
                + (f", and the class that the log names, {named}, cannot be imported here" if named else "")
            )
        return read_native_log(content, path, benchmark)
    for one in known:
        for foreign in one.foreign_formats:
            if foreign.recognises(content):
                log = foreign.read(content, path)
                check_values(one, log.sets, path)
                return log
    keys = ", ".join(list(content)[:5]) or "none"
    raise InputError(
        f"{path}: unknown format (its keys: {keys}). Known are logs of this package and "
        f"{', '.join(one.file for benchmark in known for one in benchmark.foreign_formats)}."
    )


def _from_hub(file: str) -> Path:
    """Download a log of `HUB_LOGS`, or use the cached copy."""
    from huggingface_hub import hf_hub_download

    if not file:
        raise InputError(
            f"{HUB_LOGS} holds the logs of many models; for this run name the log itself, such as "
            f"{HUB_LOGS}/tofu_Llama-3.2-1B-Instruct_retain90/TOFU_EVAL.json."
        )
    try:
        with bounded_hub():
            return Path(hf_hub_download(HUB_LOGS, file, repo_type="dataset"))
    except hub_errors(ValueError) as error:  # no network, no such file, or (ValueError) an invalid name
        raise InputError(
            f"{file} of the data set {HUB_LOGS} could not be loaded: {str(error).splitlines()[0]} Check the name and "
            "the network, or give a file."
        ) from error


def last_evaluation(folder: Path, benchmark: Benchmark | None = None) -> Path:
    """Return the last evaluation of a run, preferring those of ``benchmark``.

    Args:
        folder: Folder of a run, of runs of which one has evaluations, or of logs alone.
        benchmark: See `read_log`.

    Raises:
        InputError: There is no evaluation, or those of several runs.
    """
    run = only_run(folder)
    logs = evaluations_of_runs(folder.glob("*.json") if run is None else run.glob("evaluations/*.json"))
    if {log.name for log in logs} <= _OF_FORGET:
        refuse_without_evaluations(folder)
    if not logs:
        raise InputError(f"{folder}: no evaluation log in this folder; name a log, or a run that evaluated its model")
    logs = last_of_each(logs)
    if benchmark is not None and len(logs) > 1:
        return next((log for log in logs if f'"format": "{benchmark.format}"' in _start(log)), logs[0])
    return logs[0]


def only_run(folder: Path) -> Path | None:
    """Return the folder with evaluations: ``folder``, or the only one below it; None without any.

    Raises:
        InputError: Several folders below ``folder`` hold evaluations.
    """
    if any(folder.glob("evaluations/*.json")):
        return folder
    runs = sorted({log.parent.parent for log in folder.rglob("evaluations/*.json")})
    if len(runs) > 1:
        raise InputError(f"{folder} holds {len(runs)} runs; give one of them: {', '.join(map(str, runs[:6]))}.")
    return runs[0] if runs else None


_OF_FORGET = frozenset({"verdict.json", "sources.json", "scores.json"})
"""Files of `forget` and of `clean` that are no evaluations."""


def refuse_without_evaluations(folder: Path) -> None:
    """Refuse a folder of `forget`, which has a verdict in place of evaluations, or a run that was cleaned.

    Raises:
        InputError: It is one of these, or the run inside.
    """
    inside = [folder.parent] if (folder.parent / "sources.json").is_file() else []
    for place in (folder, *inside):
        if (place / "verdict.json").is_file():
            raise InputError(f"{place} is a run of forget, which has written its page: {place / 'results.html'}.")
        if (place / "scores.json").is_file():
            raise InputError(
                f"{place} was cleaned: its evaluations are gone, and their numbers are in scores.json there."
            )


def evaluations_of_runs(logs: Iterable[Path]) -> list[Path]:
    """Leave out evaluations by ``validate`` and ``test`` if a ``fit`` wrote some of the same name in their folder.

    They may have measured another model than the one that the run trains. The others are sorted by name and by the
    numbers in it: epoch, step, and the number of a repetition.
    """
    ordered = sorted(logs, key=lambda log: [int(part) if part.isdigit() else part for part in _NUMBER.split(log.name)])
    named = [(log, (log.parent, log.stem.partition("_epoch=")[0]), _MEASURED.search(log.stem)) for log in ordered]
    fitted = {name for _, name, measured in named if not measured}
    return [log for log, name, measured in named if not measured or name not in fitted]


def last_of_each(logs: Iterable[Path]) -> list[Path]:
    """Return the last of the ordered evaluations (`evaluations_of_runs`) of each name; the newest file comes first.

    Of one name the last step counts, since files that were copied may have any age.
    """
    last = {log.stem.partition("_epoch=")[0]: log for log in logs}
    return sorted(last.values(), key=lambda log: (log.stat().st_mtime_ns, log.name), reverse=True)


_NUMBER = re.compile(r"(\d+)")
_MEASURED = re.compile(r"_epoch=.*_(validate|test)(_\d+)?$")


def _start(path: Path, size: int = 300) -> str:
    """Return the beginning of a file, where a log has its format."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(size)


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


_FINGERPRINT = re.compile(r"-[0-9a-f]{12}$")


def check_comparable(log: EvaluationLog, reference: EvaluationLog, benchmark: Benchmark) -> None:
    """Refuse a retain model's log that is not comparable with ``log``.

    Settings that a foreign format does not state are not compared; counts, indices and questions are, if both logs have
    them.

    Raises:
        InputError: The benchmarks, a setting, the rows or their questions differ.
    """
    pair = f"{log.path or 'the log'} cannot be compared with {reference.path or 'the reference'}"
    other_benchmark = find_benchmark(reference.format, reference.benchmark)
    if other_benchmark is None or other_benchmark.format != benchmark.format:
        name = reference.format if other_benchmark is None else other_benchmark.title
        raise InputError(f"{pair}: one is of {benchmark.title}, the other of {name} ({log.format}, {reference.format})")
    for key in benchmark.compared_settings:
        mine, other = log.settings.get(key), reference.settings.get(key)
        if mine is not None and other is not None and not _same_setting(str(mine), str(other)):
            raise InputError(f"{pair}: {key} is {mine!r} in the log and {other!r} in the reference")
    whole, other_whole = with_skipped(log.sets, log.skipped), with_skipped(reference.sets, reference.skipped)
    whole_prompts = {one.name for one in benchmark.foreign_formats if one.whole_prompts}
    contained = bool(whole_prompts & {log.format, reference.format})
    for name in benchmark.compared_sets:
        if whole.get(name) and other_whole.get(name):
            _check_rows(f"{pair}: set {name!r}", whole[name], other_whole[name], contained)
    for one, against in ((log, reference), (reference, log)):
        if one.format in whole_prompts and against.format not in whole_prompts and _is_llama3(one):
            rank_zero_warn(
                f"{one.path or 'A log'} is open-unlearning's of a Llama-3 model. It was made with the end-of-turn "
                "token as the pad token, which masks the ends of the turns in every prompt, so that its numbers are "
                "not those of an ordinary forward pass, and forget quality and PrivLeak against it are less reliable. "
                "Measure the retain model with this package for an exact comparison.",
                category=UserWarning,
            )


def _is_llama3(log: EvaluationLog) -> bool:
    """Recognise a Llama-3 log by the headers of the turns, which remain as words in a decoded prompt."""
    questions = [row.get("question") or "" for rows in log.sets.values() for row in rows]
    return any(re.search(r"user\n\n.*assistant\n\n", question, re.DOTALL) for question in questions)


def _same_setting(mine: str, other: str) -> bool:
    """Compare two settings; a prompt style's name matches any fingerprint of it (`plain-0123456789ab`)."""
    if bool(_FINGERPRINT.search(mine)) == bool(_FINGERPRINT.search(other)):
        return mine == other
    return _FINGERPRINT.sub("", mine) == _FINGERPRINT.sub("", other)


def _check_rows(where: str, rows: list[Row], others: list[Row], contained: bool) -> None:
    if len(rows) != len(others):
        raise InputError(
            f"{where} has {len(rows)} rows in the log and {len(others)} in the reference; a p-value or an AUC at one "
            "size does not compare with one at another. Evaluate both on the same split with the same number of rows."
        )
    for row, other in zip(rows, others, strict=True):
        if row["index"] != other["index"]:
            only = sorted({row["index"] for row in rows} ^ {other["index"] for other in others})
            raise InputError(f"{where} has other rows: {only[:5]} are in one of the two logs only")
        if not _same_question(row.get("question"), other.get("question"), contained):
            raise InputError(
                f"{where}, row {row['index']}, asks different questions: {row['question']!r} and {other['question']!r}"
            )


def _same_question(first: str | None, second: str | None, contained: bool) -> bool:
    """Compare two questions without blanks and punctuation; open-unlearning logs the whole prompt around a question."""
    if not first or not second:
        return True
    mine, other = (re.sub(r"\W+", "", text).lower() for text in (first, second))
    return mine == other or (contained and (mine in other or other in mine))
