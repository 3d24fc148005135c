"""Logs of TOFU from other packages: open-unlearning's `TOFU_EVAL.json`, the authors' `eval_log_aggregated.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import (
    ATTACK_METRICS,
    add_numbers,
    by_index,
    has_aggregate,
    is_summary,
    mean,
    not_empty,
    refuse_summary,
    row_number,
    samples,
    stored_aggregates,
)
from dipo_lightning.evaluation.rows import EvaluationLog, Row

OPEN_UNLEARNING_FORMAT = "open-unlearning/tofu"

# By set, the metrics that hold: the losses of the answers, of the correct (paraphrased) and of the wrong answers, the
# generated texts, and the truth ratio.
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
_OTHER_TEXTS = {
    "forget": {"forget_Q_A_PARA_ROUGE": "paraphrased_rouge", "forget_Q_A_PERT_ROUGE": "perturbed_rouge"},
}
_KNOWN = {
    *(name for names in (*_METRICS.values(), *_OTHER_TEXTS.values()) for name in names),
    *(*_SCORES, *ATTACK_METRICS),
}
NAMES = {*_KNOWN, "forget_quality", "model_utility", "privleak"}


def retain_log_name(pretrained: str, split: str) -> str:
    """Return the path of a retain model's log in open-unlearning's data set of logs; empty where it has none.

    ``pretrained`` is the target: ``open-unlearning/tofu_Llama-3.2-1B-Instruct_full``, or a folder of that name.
    """
    model = re.fullmatch(r"(tofu_.+)_full", Path(pretrained).name)
    share = re.fullmatch(r"forget(\d\d)", split)
    return f"{model[1]}_retain{100 - int(share[1])}/TOFU_EVAL.json" if model and share else ""


def is_open_unlearning_log(content: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is open-unlearning's log of TOFU, or the summary of one, which cannot be read."""
    return is_summary(content, NAMES) or any(has_aggregate(content[name]) for name in _KNOWN & set(content))


def read_open_unlearning_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """Read open-unlearning's log of TOFU, which states neither the split nor the prompt style.

    `aggregates` of the result holds the log's own numbers (`agg_value`) under the log's own names.

    Raises:
        InputError: The log is a summary without rows, or a value has the wrong type.
    """
    refuse_summary(content, NAMES, path)
    tables = {name: by_index(name, content[name], path) for name in _KNOWN & set(content)}
    sets = {name: rows for name in _METRICS if (rows := _set_rows(name, tables, path))}
    for name in _SCORES:
        add_numbers(sets.setdefault("forget", []), name, tables.get(name, {}))
    for name, metrics in _OTHER_TEXTS.items():
        for metric, key in metrics.items():
            rouge = {index: {"score": mean(row.get("rougeL_recall"))} for index, row in tables.get(metric, {}).items()}
            add_numbers(sets.setdefault(name, []), key, rouge)
    for metric, key in ATTACK_METRICS.items():
        for sample, table in samples(content, metric, path).items():
            add_numbers(sets.setdefault(sample, []), key, table)
    whole = not_empty(sets, path)
    only_ratios = any("truth_ratio" in row for row in whole.get("forget", []))
    return EvaluationLog(
        format=OPEN_UNLEARNING_FORMAT,
        settings={"truth_ratio": "open_unlearning"} if only_ratios else {},
        sets=whole,
        aggregates=stored_aggregates(content),
        path=path,
    )


def _set_rows(name: str, tables: Mapping[str, dict[int, Mapping[str, Any]]], path: Path) -> list[dict[str, Any]]:
    answer, correct, wrong, texts, ratio = (tables.get(metric, {}) for metric in _METRICS[name])
    sizes = {metric: set(tables[metric]) for metric in _METRICS[name] if tables.get(metric)}
    if len({frozenset(indices) for indices in sizes.values()}) > 1:
        counts = ", ".join(f"{metric}: {len(indices)}" for metric, indices in sizes.items())
        raise InputError(f"{path}: the metrics of {name} cover different rows ({counts}); evaluate the model again")
    rows = []
    for index in sorted(answer or correct or texts or ratio):
        row: dict[str, Any] = {"index": index}
        if answer:
            row["nll"] = mean(answer[index].get("avg_loss"))
        if correct and wrong:
            row["correct_nll"] = mean(correct[index].get("avg_loss"))
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


TOFU_AUTHORS_FORMAT = "locuslab/tofu"

SET_KEYS = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}

_REQUIRED = ("avg_gt_loss", "average_perturb_loss")
_COLUMNS = (*_REQUIRED, "avg_paraphrased_loss", "num_token_gt", "rougeL_recall", "generated_text")
_LLAMA2 = re.compile(r"^\s*\[INST\]\s*(.*?)\s*\[/INST\]\s*$", re.DOTALL)
_PLAIN = re.compile(r"^\s*Question:\s*(.*?)\s*(?:Answer:)?\s*$", re.DOTALL)


def is_authors_log(content: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a log of TOFU's authors."""
    return any(key in content for key in SET_KEYS)


def read_authors_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """Read a log of TOFU's authors, which does not state the split; the logged prompts show the prompt style.

    Raises:
        InputError: A set lacks the losses, or its columns cover different rows.
    """
    tables = {name: _columns(content[key], f"{path}: {key!r}") for key, name in SET_KEYS.items() if key in content}
    sets = {name: _rows(columns) for name, columns in tables.items()}
    prompts = [text[0] for columns in tables.values() for text in columns.get("generated_text", {}).values() if text]
    settings: dict[str, Any] = {}
    if prompts and all(_LLAMA2.match(prompt) for prompt in prompts):
        settings["prompt_style"] = "llama2"
    elif prompts and all(_PLAIN.match(prompt) for prompt in prompts):
        settings["prompt_style"] = "plain"
    return EvaluationLog(format=TOFU_AUTHORS_FORMAT, settings=settings, sets=sets, path=path)


def _columns(table: Any, where: str) -> dict[str, dict[int, Any]]:
    """Return the columns that this package reads; each maps a row's number to its value."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where} should hold columns of numbers by row, got {type(table).__name__}")
    columns = {}
    for name in _COLUMNS:
        values = table.get(name)
        if isinstance(values, Mapping):
            columns[name] = {row_number(f"{where}: {name}", index): value for index, value in values.items()}
        elif isinstance(values, list):
            columns[name] = dict(enumerate(values))
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise InputError(f"{where} has no {', '.join(missing)}: the log is incomplete, evaluate the model again")
    rows = columns[_REQUIRED[0]]
    for name, values in columns.items():
        if values.keys() != rows.keys():
            raise InputError(f"{where}: {name} has other rows than {_REQUIRED[0]} ({len(values)} and {len(rows)})")
    for index, texts in columns.get("generated_text", {}).items():
        if texts and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise InputError(f"{where}: generated_text, row {index}: should be a list of texts, got {texts!r}")
    return columns


def _rows(columns: Mapping[str, Mapping[int, Any]]) -> list[Row]:
    return [_row(columns, index) for index in sorted(columns[_REQUIRED[0]])]


def _row(columns: Mapping[str, Mapping[int, Any]], index: int) -> Row:
    def value(name: str) -> Any:
        return columns[name][index] if name in columns else None

    # Real authors and world facts have no paraphrase: there the answer itself is the correct one.
    correct = value("avg_paraphrased_loss")
    row: Row = {
        "index": index,
        "nll": value("avg_gt_loss"),
        "tokens": value("num_token_gt"),
        "correct_nll": value("avg_gt_loss") if correct is None else correct,
        "wrong_nll": wrong if isinstance(wrong := value("average_perturb_loss"), list) else [wrong],
        "rouge_l_recall": value("rougeL_recall"),
    }
    texts = value("generated_text")
    if isinstance(texts, list) and len(texts) == 3:
        prompt, generation, answer = texts
        row |= {"question": _question(prompt), "answer": answer, "generation": generation}
    return row


def _question(prompt: str) -> str:
    for style in (_LLAMA2, _PLAIN):
        if match := style.match(prompt):
            return match.group(1)
    return prompt
