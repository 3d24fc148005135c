"""Checks that two logs may be compared row by row."""

from __future__ import annotations

import re

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs.log import MUSE_FORMATS, OPEN_UNLEARNING_FORMAT, EvaluationLog, Row, with_skipped

COMPARED_SETTINGS = ("split", "truth_ratio", "prompt_style", "min_k_fraction", "variant")
"""Settings that change a row's numbers; compared where both logs state them."""

_FINGERPRINT = re.compile(r"-[0-9a-f]{12}$")
_TOFU_SETS = ("forget", "holdout")
_MUSE_SETS = ("privleak_forget", "privleak_holdout")


def check_comparable(log: EvaluationLog, reference: EvaluationLog) -> None:
    """Refuse a reference that was evaluated on something else, saying on what.

    What a foreign format does not say is not compared; counts, indices and questions are, where both logs have them.

    Args:
        log: Of the model in question.
        reference: Of the retain model.

    Raises:
        InputError: The benchmarks, a setting, the rows or their questions differ.
    """
    pair = f"{log.path or 'the log'} cannot be compared with {reference.path or 'the reference'}"
    if (log.format in MUSE_FORMATS) != (reference.format in MUSE_FORMATS):
        raise InputError(f"{pair}: one is of MUSE, the other of TOFU ({log.format}, {reference.format})")
    for key in COMPARED_SETTINGS:
        mine, other = log.settings.get(key), reference.settings.get(key)
        if mine is not None and other is not None and not _same_setting(str(mine), str(other)):
            raise InputError(f"{pair}: {key} is {mine!r} in the log and {other!r} in the reference")
    _check_end_of_turn(pair, log, reference)
    whole, other_whole = with_skipped(log.sets, log.skipped), with_skipped(reference.sets, reference.skipped)
    contained = OPEN_UNLEARNING_FORMAT in (log.format, reference.format)
    for name in _MUSE_SETS if log.format in MUSE_FORMATS else _TOFU_SETS:
        if whole.get(name) and other_whole.get(name):
            _check_rows(f"{pair}: set {name!r}", whole[name], other_whole[name], contained)


def _check_end_of_turn(pair: str, log: EvaluationLog, reference: EvaluationLog) -> None:
    """Refuse a PrivLeak between scores with and scores without the token that ends an answer."""
    mine, other = log.end_of_turn, reference.end_of_turn
    if mine != other and None not in (mine, other) and log.sets.get("holdout") and reference.sets.get("holdout"):
        raise InputError(
            f"{pair}: PrivLeak would compare Min-K scores of two definitions; the token that ends an answer is {mine} "
            f"in the log and {other} in the reference. Evaluate the model whose scores include it again."
        )


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
