"""open-unlearning's `TOFU_EVAL.json` and `MUSE_EVAL.json`: for each metric an `agg_value` and a `value_by_index`.

A row is put together from several metrics: its answer's loss from one, the paraphrase's from another, and so on. The
`score` of its truth ratios is R = wrong / correct with 1e-10 in the denominator, never 1/R. Metrics that are not known
here are passed over, whatever they hold: forks write their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.rows import EvaluationLog, Row

OPEN_UNLEARNING_FORMAT = "open-unlearning/tofu"
OPEN_UNLEARNING_MUSE_FORMAT = "open-unlearning/muse"

# Set name: the metric of its answer, of its correct (paraphrased) answer, of its wrong ones, of its texts, and its R.
_METRICS = {
    "forget": (
        "forget_Q_A_Prob",
        "forget_Q_A_PARA_Prob",
        "forget_Q_A_PERT_Prob",
        "forget_Q_A_ROUGE",
        "forget_truth_ratio",
    ),
    "retain": (
        "retain_Q_A_Prob",
        "retain_Q_A_PARA_Prob",
        "retain_Q_A_PERT_Prob",
        "retain_Q_A_ROUGE",
        "retain_Truth_Ratio",
    ),
    "real_authors": ("ra_Q_A_Prob", "ra_Q_A_Prob", "ra_Q_A_PERT_Prob", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    "world_facts": ("wf_Q_A_Prob", "wf_Q_A_Prob", "wf_Q_A_PERT_Prob", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
}
_SCORES = ("exact_memorization", "extraction_strength")
_ATTACKS = {
    "mia_loss": "loss",
    "mia_zlib": "zlib",
    "mia_min_k": "min_k",
    "mia_min_k_plus_plus": "min_k_plus_plus",
    "mia_reference": "reference",
}
_KNOWN = {*(name for names in _METRICS.values() for name in names), *_SCORES, *_ATTACKS}
# MUSE: the metric of each set whose texts are compared.
_MUSE_TEXTS = {
    "verbmem": "forget_verbmem_ROUGE",
    "knowmem_forget": "forget_knowmem_ROUGE",
    "knowmem_retain": "retain_knowmem_ROUGE",
}
_PLAIN_NAMES = {*_KNOWN, *_MUSE_TEXTS.values(), "forget_quality", "model_utility", "privleak"}


def is_open_unlearning_log(content: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is such a log of TOFU, or a summary, which the reader refuses."""
    return is_summary(content) or any(_has_aggregate(content[name]) for name in _KNOWN & set(content))


def is_open_unlearning_muse_log(content: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is such a log of MUSE."""
    return any(_has_aggregate(content.get(name)) for name in _MUSE_TEXTS.values())


def is_summary(content: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a `TOFU_SUMMARY.json` or `MUSE_SUMMARY.json`: a plain number for each metric."""
    numbers = [name for name, value in content.items() if isinstance(value, int | float) and name in _PLAIN_NAMES]
    return bool(numbers) and not any(isinstance(value, Mapping) for value in content.values())


def read_open_unlearning_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """Rows of such a log.

    Args:
        content: The JSON object.
        path: Where it came from, for messages.

    Returns:
        The log; `aggregates` holds its own `agg_value`s under its own names. It says nothing of split or prompt style.

    Raises:
        InputError: It is a summary without rows, or a row's value is not what the format says.
    """
    if is_summary(content):
        raise InputError(
            f"{path}: a summary, with one number for {', '.join(list(content)[:3])} and no values by row; is this "
            "TOFU_SUMMARY.json or MUSE_SUMMARY.json? Give the TOFU_EVAL.json or MUSE_EVAL.json beside it."
        )
    tables = {name: _by_index(name, content[name], path) for name in _KNOWN & set(content)}
    sets = {name: rows for name in _METRICS if (rows := _set_rows(name, tables, path))}
    for name in _SCORES:
        _add(sets.setdefault("forget", []), name, tables.get(name, {}), "score")
    for metric, key in _ATTACKS.items():
        for sample, table in _samples(content, metric, path).items():
            _add(sets.setdefault(sample, []), key, table, "score")
    whole = _not_empty(sets, path)
    only_ratios = any("truth_ratio" in row for row in whole.get("forget", []))
    stored = {name: metric["agg_value"] for name, metric in content.items() if _has_aggregate(metric)}
    return EvaluationLog(
        format=OPEN_UNLEARNING_FORMAT,
        settings={"truth_ratio": "open_unlearning"} if only_ratios else {},
        sets=whole,
        aggregates=stored,
        path=path,
    )


def read_open_unlearning_muse_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """Rows of such a log of MUSE, as the variant `open_unlearning` measures them.

    Args:
        content: The JSON object.
        path: Where it came from, for messages.

    Returns:
        The log; `aggregates` holds its own `agg_value`s under its own names.

    Raises:
        InputError: It is a summary without rows, or a row's value is not what the format says.
    """
    sets = {}
    for name, metric in _MUSE_TEXTS.items():
        table = _by_index(metric, content.get(metric), path)
        texts = {"rouge": "rougeL_f1", "prompt": "input", "answer": "ground_truth", "generation": "generation"}
        sets[name] = [
            {"index": index} | {key: found.get(source) for key, source in texts.items()}
            for index, found in table.items()
        ]
    for sample, table in _samples(content, "mia_min_k", path).items():
        sets[f"privleak_{sample}"] = [{"index": index, "min_k": found.get("score")} for index, found in table.items()]
    return EvaluationLog(
        format=OPEN_UNLEARNING_MUSE_FORMAT,
        settings={"variant": "open_unlearning"},
        sets=_not_empty(sets, path),
        aggregates={name: metric["agg_value"] for name, metric in content.items() if _has_aggregate(metric)},
        path=path,
    )


def _not_empty(sets: Mapping[str, list[Any]], path: Path) -> dict[str, list[Row]]:
    """The sets that have rows, in the order of their indices."""
    found = {name: sorted(rows, key=lambda row: row["index"]) for name, rows in sets.items() if rows}
    if not found:
        raise InputError(f"{path}: no metric has values by row (`value_by_index`); evaluate the model again")
    return found


def _samples(content: Mapping[str, Any], metric: str, path: Path) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Scores of a membership attack by sample: the forget rows and the holdout rows."""
    attack = content.get(metric)
    samples = attack if isinstance(attack, Mapping) else {}
    return {name: _by_index(f"{metric}.{name}", samples.get(name), path) for name in ("forget", "holdout")}


def _has_aggregate(metric: Any) -> bool:
    return isinstance(metric, Mapping) and "agg_value" in metric


def _by_index(name: str, metric: Any, path: Path) -> dict[int, Mapping[str, Any]]:
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


def row_number(where: str, key: str) -> int:
    """Return the row that a key names: `"3"`, or `"3.0"` as pandas writes it.

    Raises:
        InputError: It names none.
    """
    whole = re.fullmatch(r"(\d+)(\.0+)?", key)
    if whole is None:
        raise InputError(f"{where} should be keyed by row number, got {key!r}")
    return int(whole[1])


def _set_rows(name: str, tables: Mapping[str, dict[int, Mapping[str, Any]]], path: Path) -> list[dict[str, Any]]:
    answer, correct, wrong, texts, ratio = (tables.get(metric, {}) for metric in _METRICS[name])
    sizes = {metric: set(tables[metric]) for metric in _METRICS[name] if tables.get(metric)}
    if len({frozenset(indices) for indices in sizes.values()}) > 1:
        counts = ", ".join(f"{metric}: {len(indices)}" for metric, indices in sizes.items())
        raise InputError(f"{path}: the metrics of {name} have different rows ({counts}); evaluate the model again")
    rows = []
    for index in sorted(answer or correct or texts or ratio):
        row: dict[str, Any] = {"index": index}
        if answer:
            row["nll"] = _single(answer[index].get("avg_loss"))
        if correct and wrong:
            row["correct_nll"] = _single(correct[index].get("avg_loss"))
            losses = wrong[index].get("avg_loss")
            row["wrong_nll"] = losses if isinstance(losses, list) else [losses]
        elif ratio:
            row["truth_ratio"] = ratio[index].get("score")
        if texts:
            found = texts[index]
            row |= {"rouge_l_recall": found.get("rougeL_recall"), "generation": found.get("generation")}
            row |= {"question": found.get("input"), "answer": found.get("ground_truth")}
        rows.append(row)
    return rows


def _single(loss: Any) -> float | None:
    """One loss; of several paraphrases their mean, as open-unlearning takes it."""
    if not isinstance(loss, list):
        return loss
    return None if not loss or None in loss else sum(loss) / len(loss)


def _add(rows: list[dict[str, Any]], key: str, table: Mapping[int, Mapping[str, Any]], source: str) -> None:
    """Give each row a further number, making the rows that are not there yet."""
    known = {row["index"]: row for row in rows}
    for index, value in table.items():
        if index not in known:
            known[index] = {"index": index}
            rows.append(known[index])
        known[index][key] = value.get(source)
