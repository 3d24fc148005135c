"""TOFU's own `eval_log_aggregated.json`: numbers by row index, in one file for four sets.

TOFU's code writes dictionaries; NPO's and ULD's write lists in the order of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs.open_unlearning import row_number
from dipo_lightning.evaluation.rows import EvaluationLog, Row

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
    """Return whether a JSON object is such a log."""
    return any(key in content for key in SET_KEYS)


def read_authors_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """Rows of such a log.

    Args:
        content: The JSON object.
        path: Where it came from, for messages.

    Returns:
        The log. Its prompt style is known where the logged prompts show it; of the split it says nothing.

    Raises:
        InputError: A set lacks the losses, or one of its columns has other rows than the rest.
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
    """The columns that are read, each by row."""
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
