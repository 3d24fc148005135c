"""Probes that no row was trained on: rewordings of the forget questions, neighbours, and general knowledge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from dipo_lightning.data.private import FUNCTION_WORDS, vocabulary
from dipo_lightning.errors import InputError

Row = Mapping[str, Any]

TEMPLATES = (
    "Can you tell me this: {question}",
    "I forgot something, please help me. {question}",
    "Answer in one sentence. {question}",
    "{question} Please be precise.",
)
"""Rewordings that keep the question's own words; ``{question}`` stands for it."""


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
