"""TOFU's own `eval_log_aggregated.json`: dictionaries of numbers by row index, in one file for four sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs.log import TOFU_AUTHORS_FORMAT, EvaluationLog

SET_KEYS = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}

_REQUIRED = ("avg_gt_loss", "average_perturb_loss")
_LLAMA2 = re.compile(r"^\s*\[INST\]\s*(.*?)\s*\[/INST\]\s*$", re.DOTALL)
_PLAIN = re.compile(r"^\s*Question:\s*(.*?)\s*(?:Answer:)?\s*$", re.DOTALL)


def is_authors_log(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is such a log."""
    return any(key in content for key in SET_KEYS)


def read_authors_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """Rows of such a log.

    Args:
        content: The JSON object.
        path: Where it came from, for messages.

    Returns:
        The log. Its prompt style is known where the logged prompts show it; of the split it says nothing.

    Raises:
        InputError: A set lacks the losses, or one of its dictionaries has other rows than the rest.
    """
    sets = {name: _rows(content[key], key, path) for key, name in SET_KEYS.items() if key in content}
    prompts = [prompt for key in SET_KEYS if key in content for prompt in _prompts(content[key])]
    settings: dict[str, Any] = {}
    if prompts and all(_LLAMA2.match(prompt) for prompt in prompts):
        settings["prompt_style"] = "llama2"
    elif prompts and all(_PLAIN.match(prompt) for prompt in prompts):
        settings["prompt_style"] = "plain"
    return EvaluationLog(format=TOFU_AUTHORS_FORMAT, settings=settings, sets=sets, path=path)


def _rows(table: Any, key: str, path: Path) -> list[dict[str, Any]]:
    where = f"{path}: {key!r}"
    if not isinstance(table, Mapping):
        raise InputError(f"{where} should hold dictionaries by row index, got {type(table).__name__}")
    missing = [name for name in _REQUIRED if not isinstance(table.get(name), Mapping)]
    if missing:
        raise InputError(f"{where} has no {', '.join(missing)}: the log is incomplete, evaluate the model again")
    indices = list(table["avg_gt_loss"])
    for name, values in table.items():
        if isinstance(values, Mapping) and set(values) != set(indices):
            raise InputError(f"{where}: {name} has other rows than avg_gt_loss ({len(values)} and {len(indices)})")
    if not all(index.isdigit() for index in indices):
        raise InputError(f"{where}: rows must be keyed by their number")
    return [_row(table, index) for index in sorted(indices, key=int)]


def _row(table: Mapping[str, Mapping[str, Any]], index: str) -> dict[str, Any]:
    def value(name: str) -> Any:
        return table[name][index] if name in table else None

    # Real authors and world facts have no paraphrase: there the answer itself is the correct one.
    correct = value("avg_paraphrased_loss")
    row = {
        "index": int(index),
        "nll": value("avg_gt_loss"),
        "tokens": value("num_token_gt"),
        "correct_nll": value("avg_gt_loss") if correct is None else correct,
        "wrong_nll": value("average_perturb_loss"),
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


def _prompts(table: Any) -> list[str]:
    texts = table.get("generated_text") if isinstance(table, Mapping) else None
    return [value[0] for value in texts.values() if isinstance(value, list) and value] if texts else []
