"""Probes that no row was trained on: rewordings of the forget questions, neighbours, and general knowledge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from torch import nn

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.private import FUNCTION_WORDS, has_digit, vocabulary, words
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.sampling import hash_seed, sample
from dipo_lightning.models.distributed import evaluation_mode, unsharded

Row = Mapping[str, Any]

TEMPLATES = (
    "Can you tell me this: {question}",
    "I forgot something, please help me. {question}",
    "Answer in one sentence. {question}",
    "{question} Please be precise.",
)
"""Rewordings that keep the question's own words; ``{question}`` stands for it."""
REPHRASE = "Ask the same question in other words, and write nothing else: {question}"
ATTEMPTS = 4
"""Samples for each paraphrase that is asked for."""


def rewordings(row: Row, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Return other ways to ask the question of a row: its own paraphrases first, then the templates.

    Args:
        row: With ``question``, and where the user has them ``paraphrased_question`` (a text or a list of texts).
        templates: Texts with ``{question}``.

    Raises:
        InputError: A template has no place for the question.
    """
    for template in templates:
        if "{question}" not in template:
            raise InputError(f"The template {template!r} has no {{question}}: write where the question stands.")
    given = row.get("paraphrased_question") or []
    own = [given] if isinstance(given, str) else [str(one) for one in given]
    return own + [template.replace("{question}", row["question"]) for template in templates]


def own_paraphrases(
    policy: nn.Module, style: PromptStyle, rows: Sequence[Row], count: int, seed: int = 0
) -> list[list[str]]:
    """Let a model ask the questions of rows in its own words.

    Of its sampled attempts those are kept that are one question, other than the row's, and name what the row's names.

    Args:
        policy: A ``transformers`` causal LM; the target, so that all models are asked the same.
        style: Prompt style.
        rows: Rows with a question.
        count: Paraphrases of each question at most.
        seed: Of the samples.

    Returns:
        For each row up to ``count`` questions; a small model may give none.
    """
    asked = [style.prompt(REPHRASE.replace("{question}", row["question"])) for row in rows]
    seeds = [hash_seed(seed, number) for number in range(len(rows))]
    with evaluation_mode(policy), unsharded(policy):
        said = sample(
            policy, asked, samples=ATTEMPTS * count, max_new_tokens=64, stop_ids=style.stop_ids, seeds=seeds,
            temperature=0.7,
        )  # fmt: skip
    texts = [[str(style.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in one] for one in said]
    return [
        [text for text in dict.fromkeys(attempts) if is_paraphrase(row["question"], text)][:count]
        for row, attempts in zip(rows, texts, strict=True)
    ]


def is_paraphrase(question: str, text: str) -> bool:
    """Return whether a text is one question, other than the given one, with all its names and numbers."""
    named = {word.text for word in words(question)[1:] if question[word.start].isupper() or has_digit(word.text)}
    one = text.endswith("?") and text.count("?") == 1 and "\n" not in text
    return one and named <= vocabulary([text]) and text.casefold() != question.casefold()


def neighbours(forget: Sequence[Row], others: Sequence[Row], count: int) -> list[int]:
    """Find the rows about other things whose questions are most like those to forget.

    Likeness is the share of content words in common (Jaccard) with the nearest forget question.

    Args:
        forget: Rows to forget.
        others: Rows that must stay and were not trained on.
        count: How many to take.

    Returns:
        Indices into ``others``, the likest first.
    """
    asked = [vocabulary([row["question"]]) - FUNCTION_WORDS for row in forget]

    def likeness(row: Row) -> float:
        mine = vocabulary([row["question"]]) - FUNCTION_WORDS
        return max((len(mine & one) / len(mine | one) for one in asked if mine | one), default=0.0)

    order = sorted(range(len(others)), key=lambda index: -likeness(others[index]))
    return order[:count]


def general_rows() -> list[dict[str, Any]]:
    """Return the embedded rows of general knowledge: arithmetic, capitals, common sense and facts.

    Each has ``kind``, ``question``, ``answer``, and three wrong answers of the same form in ``perturbed_answer``.
    """
    return list(_general()["rows"])


def general_paragraphs() -> list[str]:
    """Return the embedded paragraphs of ordinary prose, for a perplexity."""
    return list(_general()["paragraphs"])


def _general() -> dict[str, Any]:
    return dict(json.loads((files(__package__) / "general.json").read_text(encoding="utf-8")))
