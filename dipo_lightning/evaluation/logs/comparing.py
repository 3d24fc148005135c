"""Check that two logs may be compared row by row."""

from __future__ import annotations

import re

from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.benchmark import Benchmark, find_benchmark
from dipo_lightning.evaluation.rows import EvaluationLog, Row, with_skipped

_FINGERPRINT = re.compile(r"-[0-9a-f]{12}$")


def check_comparable(log: EvaluationLog, reference: EvaluationLog, benchmark: Benchmark) -> None:
    """Refuse a reference that was evaluated on something else, saying on what.

    What a foreign format does not say is not compared; counts, indices and questions are, where both logs have them.

    Args:
        log: Of the model in question.
        reference: Of the retain model.
        benchmark: The log's.

    Raises:
        InputError: The benchmarks, a setting, the rows or their questions differ.
    """
    pair = f"{log.path or 'the log'} cannot be compared with {reference.path or 'the reference'}"
    other_benchmark = find_benchmark(reference.format, reference.benchmark)
    if type(other_benchmark) is not type(benchmark):
        name = reference.format if other_benchmark is None else other_benchmark.title
        raise InputError(f"{pair}: one is of {benchmark.title}, the other of {name} ({log.format}, {reference.format})")
    for key in benchmark.compared_settings:
        mine, other = log.settings.get(key), reference.settings.get(key)
        if mine is not None and other is not None and not _same_setting(str(mine), str(other)):
            raise InputError(f"{pair}: {key} is {mine!r} in the log and {other!r} in the reference")
    if reason := benchmark.refusal(log, reference):
        raise InputError(f"{pair}: {reason}")
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
                "token as the pad token, which masks the ends of the turns in every prompt, so its numbers are those "
                "of another forward: forget quality and PrivLeak against it say less. Measure the retain model here "
                "for an exact comparison.",
                category=UserWarning,
            )


def _is_llama3(log: EvaluationLog) -> bool:
    """Tell by the headers of the turns, which a decoded prompt keeps as words."""
    questions = [row.get("question") or "" for rows in log.sets.values() for row in rows]
    return any(re.search(r"user\n\n.*assistant\n\n", question, re.DOTALL) for question in questions)


def _same_setting(mine: str, other: str) -> bool:
    """Equal; a prompt style's name alone says nothing against a fingerprint (`plain-0123456789ab`) of that style."""
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
    """Equal but for blanks and punctuation; open-unlearning logs the whole prompt, which contains the question."""
    if not first or not second:
        return True
    mine, other = (re.sub(r"\W+", "", text).lower() for text in (first, second))
    return mine == other or (contained and (mine in other or other in mine))
