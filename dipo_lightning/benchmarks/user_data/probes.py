"""Probes that are not in the training data: rewordings of forget questions, neighbours, and general knowledge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from dipo_lightning.data.encoding import PromptStyle, plain_text
from dipo_lightning.data.files import shipped_json
from dipo_lightning.data.language import FUNCTION_WORDS, names_in, vocabulary
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
"""Rewordings around the question, which replaces ``{question}``."""
REPHRASE = "Ask the same question in other words, and write nothing else: {question}"
ATTEMPTS = 4
"""Number of samples per requested paraphrase."""


def rewordings(row: Row, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Return rewordings of a row's question: its own paraphrases first, then the templates.

    One that equals the question or an earlier one up to case and blanks is left out.

    Args:
        row: Row with ``question`` and optionally ``paraphrased_question`` (a text or a list of texts).
        templates: Texts with a ``{question}`` placeholder.

    Raises:
        InputError: A template has no placeholder.
    """
    for template in templates:
        if "{question}" not in template:
            raise InputError(f"The template {template!r} has no {{question}}: write where the question stands.")
    given = row.get("paraphrased_question") or []
    own = [given] if isinstance(given, str) else [str(one) for one in given]
    framed = [template.replace("{question}", row["question"]) for template in templates]
    return _different([*own, *framed], row["question"])


def _different(texts: Iterable[str], question: str) -> list[str]:
    """Return the texts that differ from a question, and from the texts before them, by more than case and blanks."""
    found = {plain_text(question): question}
    for text in texts:
        found.setdefault(plain_text(text), text)
    return list(found.values())[1:]


def own_paraphrases(
    policy: nn.Module, style: PromptStyle, rows: Sequence[Row], count: int, seed: int = 0
) -> list[list[str]]:
    """Let a model paraphrase the questions of rows.

    A sampled attempt is kept if it is a single question, differs from the original, and contains all its names and
    numbers.

    Args:
        policy: A ``transformers`` causal LM, usually the target, so that all models get the same questions.
        style: Prompt style.
        rows: Rows with a question.
        count: Maximum number of paraphrases per question.
        seed: Seed of the samples.

    Returns:
        Up to ``count`` questions per row; a small model may give none.
    """
    asked = [style.prompt(REPHRASE.replace("{question}", row["question"])) for row in rows]
    seeds = [hash_seed(seed, number) for number in range(len(rows))]
    with evaluation_mode(policy), unsharded(policy):
        said = sample(
            policy, asked, samples=ATTEMPTS * count, max_new_tokens=64, stop_ids=style.stop_ids, seeds=seeds,
            temperature=0.7,
        )  # fmt: skip
    texts = [[style.text(ids) for ids in one] for one in said]
    return [
        _different([text for text in attempts if is_paraphrase(row["question"], text)], row["question"])[:count]
        for row, attempts in zip(rows, texts, strict=True)
    ]


def is_paraphrase(question: str, text: str) -> bool:
    """Return whether a text is a single question that differs from the given one and has all its names and numbers."""
    one = text.endswith("?") and text.count("?") == 1 and "\n" not in text
    return one and names_in(question) <= vocabulary([text]) and bool(_different([text], question))


def neighbours(forget: Sequence[Row], others: Sequence[Row], count: int) -> list[int]:
    """Find the rows whose questions are most similar to the forget questions.

    The similarity is the share of common content words (Jaccard) with the nearest forget question.

    Args:
        forget: Forget rows.
        others: Held-out retain rows.
        count: Number of rows to choose.

    Returns:
        Indices into ``others``, the most similar first.
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
    return shipped_json(__package__, "general")["rows"]


def general_paragraphs() -> list[str]:
    """Return the embedded paragraphs of ordinary prose, for measuring perplexity."""
    return shipped_json(__package__, "general")["paragraphs"]
