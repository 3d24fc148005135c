"""Contract of an attack, and measurement of its questions.

An attack names the conditions it tries and measures the policy under each. Whatever it does to weights it undoes: the
policy it is given comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from dipo_lightning.benchmarks.robustness.tables import PARTS
from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.prompts import ChatStyle
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import BATCH_ROWS
from dipo_lightning.evaluation.questions import Plan, measure_plans
from dipo_lightning.evaluation.rows import Measuring, Progress, Row
from dipo_lightning.evaluation.run_folder import finite
from dipo_lightning.evaluation.scoring import BATCH_TOKENS
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.metrics.functional.text import rouge_l

Source = Mapping[str, Any]
"""A row as it was read: `index`, `question`, `answer`, and what else its data has."""

Measured = list[dict[str, Any]]
"""Rows as they were measured."""


@dataclass
class Subject:
    """The data that an attack is made with, and how answers are measured.

    Attributes:
        style: Prompt style of the model.
        forget: Rows that were to be forgotten: ``index``, ``question``, ``answer``, for TOFU ``paraphrased_question``.
        retain: Rows that were kept.
        unrelated: Texts that have to do with neither.
        trained: The forget rows as they were trained on, where those are not the questions: rows with ``text``.
        metrics: What is measured of the answers: names of `metrics.METRICS`, or class paths of metrics over rows.
        max_new_tokens: Most tokens of a generated answer (TOFU's published evaluation: 200).
        batch_tokens: Most tokens of a scoring forward, padding included.
        generation_rows: Most rows of a generation batch.
        device: Where the batches go; default is where the policy's parameters are.
        progress: Shows how far a measurement is.
        keep: Given a name and a function, returns the function's rows, or those that it gave before the attack was cut
            off; for attacks whose one condition takes several measurements.
    """

    style: PromptStyle
    forget: Sequence[Source]
    retain: Sequence[Source] = ()
    unrelated: Sequence[str] = ()
    trained: Sequence[Source] = ()
    metrics: Sequence[str] = PARTS
    max_new_tokens: int = 200
    batch_tokens: int = BATCH_TOKENS
    generation_rows: int = BATCH_ROWS
    device: torch.device | None = None
    progress: Progress = field(default=lambda total, what: nullcontext(lambda done: None))
    keep: Callable[[str, Callable[[], Measured]], Measured] = field(default=lambda name, measure: measure())

    @property
    def compares(self) -> bool:
        """Whether a metric compares the answer with paraphrased and wrong ones, so that they are scored as well."""
        return any(name.startswith("truth_ratio") or "." in name for name in self.metrics)


@dataclass(frozen=True)
class Condition:
    """One condition of an attack, such as a wording.

    Attributes:
        name: Name in logs, tables and of numbers, such as ``lower_case``.
        title: Its name for a reader.
        kind: ``answers`` (the metrics of each row), ``samples`` (leak@k), ``curve``
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
        raise InputError(f"The attack {type(self).__name__} does not define conditions().")

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, Measured]:
        """Measure a policy under a condition; collective, and the same rows on every process.

        Returns:
            Rows by name: the condition's, or for a curve ``{condition}_step{step}``.
        """
        raise InputError(f"The attack {type(self).__name__} does not define measure().")

    def reads(self, subject: Subject, condition: Condition) -> Any:
        """Return what a condition reads besides the options and the forget rows, such as retain rows; plain values.

        Results are taken up again only where it is the same.
        """
        return None

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


def plainly(subject: Subject) -> list[Asked]:
    """Ask the questions as the benchmark does."""
    return [ask(subject.style, row, row["question"]) for row in subject.forget]


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


def measure_answers(policy: nn.Module, subject: Subject, asked: Sequence[Asked]) -> Measured:
    """Score the true answers and let the policy answer; collective, the same on every process.

    Returns:
        A row each, with everything that `dipo_lightning.evaluation.questions` measures of a forget row, and ``rouge``,
        ROUGE-L F1 in MUSE's manner; numbers that are not finite are None. Paraphrased and wrong answers are scored
        where `Subject.compares` and the whole answer is asked for.
    """
    examples: list[Example] = []
    plans = [_plan(subject, one, examples) for one in asked]
    options = Measuring(subject.batch_tokens, subject.generation_rows, subject.max_new_tokens)
    rows = measure_plans(policy, subject.style, plans, examples, options, subject.device, subject.progress)
    return [finite({**row, "rouge": _rouge(row)}) for row in rows]


def _plan(subject: Subject, asked: Asked, examples: list[Example]) -> Plan:
    """Plan a question; its answers are added to the examples."""
    wrong, paraphrases = [], []
    if subject.compares and asked.answer == asked.row["answer"]:
        join, row = subject.style.join, asked.row
        wrong = [join(asked.prompt, text) for text in row.get("perturbed_answer", ())]
        paraphrases = [join(asked.prompt, row[name]) for name in ("paraphrased_answer",) if name in row]
    first = len(examples)
    examples.append((asked.prompt + asked.target, [-100] * len(asked.prompt) + asked.target))
    examples += wrong + paraphrases
    return Plan(
        set_name="",
        index=asked.row["index"],
        source={"question": asked.question, "answer": asked.answer},
        prompt=asked.prompt,
        answer=first,
        wrong=list(range(first + 1, first + 1 + len(wrong))),
        paraphrase=first + 1 + len(wrong) if paraphrases else None,
        ends=asked.target[-1] in subject.style.stop_ids,
        length=len(asked.target),
    )


def _rouge(row: Row) -> float:
    return rouge_l([str(row["generation"])], [row["answer"]], stemmer=False).f1.item()


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

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, Measured]:
        """Measure the plain questions."""
        return {condition.name: measure_answers(policy, subject, plainly(subject))}
