"""open-unlearning's `MUSE_EVAL.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.evaluation.logs.open_unlearning import (
    ATTACKS,
    add_numbers,
    by_index,
    has_aggregate,
    is_summary,
    not_empty,
    refuse_summary,
    samples,
    stored_aggregates,
)
from dipo_lightning.evaluation.rows import EvaluationLog

OPEN_UNLEARNING_FORMAT = "open-unlearning/muse"
# The metric of each set whose texts are compared.
_TEXTS = {
    "verbmem": "forget_verbmem_ROUGE",
    "knowmem_forget": "forget_knowmem_ROUGE",
    "knowmem_retain": "retain_knowmem_ROUGE",
}
_SCORES = ("exact_memorization", "extraction_strength")
NAMES = (*_TEXTS.values(), "privleak")


def is_open_unlearning_log(content: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is such a log."""
    return is_summary(content, NAMES) or any(has_aggregate(content.get(name)) for name in _TEXTS.values())


def read_open_unlearning_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """Rows of such a log of MUSE, as the variant `open_unlearning` measures them.

    Args:
        content: The JSON object.
        path: Where it came from, for messages.

    Returns:
        The log; `aggregates` holds its own `agg_value`s under its own names.

    Raises:
        InputError: It is a summary without rows, or a row's value is not what the format says.
    """
    refuse_summary(content, NAMES, path)
    sets = {}
    for name, metric in _TEXTS.items():
        table = by_index(metric, content.get(metric), path)
        texts = {"rouge": "rougeL_f1", "prompt": "input", "answer": "ground_truth", "generation": "generation"}
        sets[name] = [
            {"index": index} | {key: found.get(source) for key, source in texts.items()}
            for index, found in table.items()
        ]
    for score in _SCORES:
        add_numbers(sets["verbmem"], score, by_index(score, content.get(score), path))
    for metric, attack in ATTACKS.items():
        for sample, table in samples(content, metric, path).items():
            add_numbers(sets.setdefault(f"privleak_{sample}", []), attack, table)
    return EvaluationLog(
        format=OPEN_UNLEARNING_FORMAT,
        settings={"variant": "open_unlearning"},
        sets=not_empty(sets, path),
        aggregates=stored_aggregates(content),
        path=path,
    )
