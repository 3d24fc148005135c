"""Contract of an attack, and measurement of its questions.

An attack names the conditions it tries and measures the policy under each. Whatever it does to weights it undoes: the
policy it is given comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.prompts import ChatStyle
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import BATCH_ROWS, generate
from dipo_lightning.evaluation.rows import Progress
from dipo_lightning.evaluation.scoring import BATCH_TOKENS, TokenScores, score
from dipo_lightning.metrics.functional.membership import extraction_strength
from dipo_lightning.metrics.functional.text import rouge_l

Source = Mapping[str, Any]
"""A row as it was read: `index`, `question`, `answer`, and what else its data has."""


@dataclass
class Subject:
    """The data that an attack is made with, and how answers are measured.

    Attributes:
        style: Prompt style of the model.
        forget: Rows that were to be forgotten: ``index``, ``question``, ``answer``, for TOFU ``paraphrased_question``.
        retain: Rows that were kept.
        unrelated: Texts that have to do with neither.
        trained: The forget rows as they were trained on, where those are not the questions: rows with ``text``.
        max_new_tokens: Most tokens of a generated answer (TOFU's published evaluation: 200).
        batch_tokens: Most tokens of a scoring forward, padding included.
        generation_rows: Most rows of a generation batch.
        device: Where the batches go; default is where the policy's parameters are.
        progress: Shows how far a measurement is.
    """

    style: PromptStyle
    forget: Sequence[Source]
    retain: Sequence[Source] = ()
    unrelated: Sequence[str] = ()
    trained: Sequence[Source] = ()
    max_new_tokens: int = 200
    batch_tokens: int = BATCH_TOKENS
    generation_rows: int = BATCH_ROWS
    device: torch.device | None = None
    progress: Progress = field(default=lambda total, what: nullcontext(lambda done: None))


@dataclass(frozen=True)
class Condition:
    """One condition of an attack, such as a wording.

    Attributes:
        name: Name in logs, tables and of numbers, such as ``lower_case``.
        title: Its name for a reader.
        kind: ``answers`` (probability, ROUGE and extraction strength of each row), ``samples`` (leak@k), ``curve``
            (the numbers of ``answers`` at each of several steps) or ``rounded`` (the same as ``answers``, with Q).
    """

    name: str
    title: str
    kind: str = "answers"


@dataclass
class Attack:
    """One way to get forgotten knowledge back; an attack of your own is a subclass.

    Attributes:
        name: What it is called in options.
    """

    name: ClassVar[str]

    def conditions(self, subject: Subject) -> list[Condition]:
        """Return what is tried on this data.

        Raises:
            InputError: An option or the data does not allow it.
        """
        raise TypeError(f"{type(self).__name__} must define conditions()")

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, list[dict[str, Any]]]:
        """Measure a policy under a condition; collective, and the same rows on every process.

        Returns:
            Rows by name: the condition's, or for a curve ``{condition}_step{step}``.
        """
        raise TypeError(f"{type(self).__name__} must define measure()")

    @property
    def settings(self) -> dict[str, Any]:
        """The options, as plain values."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@dataclass(frozen=True)
class Asked:
    """A question as it is put to the model, and the answer it should no longer give.

    Attributes:
        row: The row it is made from.
        prompt: Token ids up to where the answer begins.
        target: Token ids of the answer, with the token that ends the turn if it has one.
        question: The question for a reader.
        answer: The text that a generation is compared with.
    """

    row: Source
    prompt: list[int]
    target: list[int]
    question: str
    answer: str


def plainly(subject: Subject, rows: Iterable[Source] | None = None) -> list[Asked]:
    """Put the questions as the benchmark does."""
    return [ask(subject.style, row, row["question"]) for row in (subject.forget if rows is None else rows)]


def ask(style: PromptStyle, row: Source, question: str, opening: str = "") -> Asked:
    """Put a question in given words.

    Args:
        style: Prompt style.
        row: The row; with ``messages`` the question takes the place of the last turn of the user.
        question: The words.
        opening: Words that the answer is made to begin with, before the true answer.
    """
    if "messages" in row and isinstance(style, ChatStyle):
        *before, last = row["messages"][:-1]
        prompt = style.conversation_prompt([*before, {**last, "content": question}])
    else:
        prompt = style.prompt(question)
    if opening:
        prompt = prompt + style.answer_ids(opening)
    ids, labels = style.join(prompt, row["answer"])
    first = next(place for place, label in enumerate(labels) if label != -100)
    return Asked(row, ids[:first], ids[first:], question, row["answer"])


def measure_answers(policy: nn.Module, subject: Subject, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Score the true answers and let the policy answer; collective, the same on every process.

    Returns:
        A row each: ``index``, ``question``, ``answer``, ``nll``, ``tokens``, ``generation``, ``rouge_l_recall`` and
        ``extraction_strength`` (without the token that ends the turn); numbers that are not finite are None.
    """
    examples = [(one.prompt + one.target, [-100] * len(one.prompt) + one.target) for one in asked]
    with subject.progress(len(examples), "answers scored") as done:
        scores = score(policy, examples, batch_tokens=subject.batch_tokens, device=subject.device, progress=done)
    with subject.progress(len(asked), "questions answered") as done:
        said = generate(
            policy,
            [one.prompt for one in asked],
            max_new_tokens=subject.max_new_tokens,
            stop_ids=subject.style.stop_ids,
            batch_rows=subject.generation_rows,
            expected=[len(one.target) for one in asked],
            known=[found.greedy_start() for found in scores],
            device=subject.device,
            progress=done,
        )
    return [_row(subject.style, *found) for found in zip(asked, scores, said, strict=True)]


def _row(style: PromptStyle, asked: Asked, scores: TokenScores, said: list[int]) -> dict[str, Any]:
    text = str(style.tokenizer.decode(said, skip_special_tokens=True)).strip()
    answer = scores.without_last() if asked.target[-1] in style.stop_ids else scores
    strength = extraction_strength(answer.correct, torch.zeros(answer.tokens, dtype=torch.long), 1).item()
    row = {
        "index": asked.row["index"],
        "question": asked.question,
        "answer": asked.answer,
        "generation": text,
        "nll": scores.nll,
        "tokens": scores.tokens,
        "rouge_l_recall": rouge_l([text], [asked.answer]).recall.item(),
        "extraction_strength": strength,
    }
    return {
        name: None if isinstance(value, float) and not torch.tensor(value).isfinite() else value
        for name, value in row.items()
    }


class Plain(Attack):
    """No attack: the questions as the benchmark puts them, which every attack is compared with."""

    name = "plain"

    def conditions(self, subject: Subject) -> list[Condition]:
        """Return the one condition.

        Raises:
            InputError: There is nothing that was to be forgotten.
        """
        if not subject.forget:
            raise InputError("There are no forget rows to attack with; give the data that was unlearned.")
        return [Condition("plain", "plain question")]

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, list[dict[str, Any]]]:
        """Measure the plain questions."""
        return {condition.name: measure_answers(policy, subject, plainly(subject))}
