"""Contract of an attack, and measurement of its questions.

An attack names the conditions it tries and measures the policy under each. Every change to the weights is undone
afterwards, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from dipo_lightning.benchmarks.robustness.tables import PARTS
from dipo_lightning.benchmarks.user_data.data import conversation
from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.prompts import ChatStyle
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import BATCH_ROWS
from dipo_lightning.evaluation.questions import Plan, measure_plans, problem
from dipo_lightning.evaluation.rows import Measuring, Progress, Row, no_progress
from dipo_lightning.evaluation.run_folder import finite
from dipo_lightning.evaluation.scoring import BATCH_TOKENS
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.metrics.functional.text import rouge_l, words
from dipo_lightning.models.answers import IGNORED, first_supervised

Source = Mapping[str, Any]
"""A row as read: `index`, `question`, `answer`, and the other fields of its data."""

Measured = list[dict[str, Any]]
"""Measured rows."""


@dataclass
class Subject:
    """Data of an attack, and options for measuring the answers.

    Attributes:
        style: Prompt style of the model.
        forget: Forget rows with ``index``, ``question`` and ``answer``; for TOFU also ``paraphrased_question``.
        retain: Retain rows.
        unrelated: Texts that are related to neither.
        trained: Training texts of the forget set (rows with ``text``) where the forget rows are questions about them.
        metrics: Metrics of the answers: names of `metrics.METRICS`, or class paths of metrics over rows.
        max_new_tokens: Maximum length of a generated answer in tokens (TOFU's published evaluation: 200).
        batch_tokens: Maximum number of tokens in a scoring forward pass, padding included.
        generation_rows: Maximum number of rows in a generation batch.
        answer_part: Function that cuts a generation for ROUGE-L F1 (MUSE: before the next question).
        device: Device of the batches; by default that of the policy's parameters.
        progress: Progress bar of a measurement.
        keep: Function that stores the rows of a single measurement under a name, and returns the stored ones after an
            interruption; for attacks that measure one condition several times.
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
    answer_part: Callable[[str], str] = str
    device: torch.device | None = None
    progress: Progress = field(default=no_progress)
    keep: Callable[[str, Callable[[], Measured]], Measured] = field(default=lambda name, measure: measure())

    @property
    def compares(self) -> bool:
        """True if a metric needs the scores of paraphrased and wrong answers."""
        return any(name.startswith("truth_ratio") or "." in name for name in self.metrics)


@dataclass(frozen=True)
class Condition:
    """One condition of an attack, such as a wording.

    Attributes:
        name: Name in logs, tables and metrics, such as ``lower_case``.
        title: Name for a reader.
        kind: ``answers`` (the metrics of each row), ``samples`` (leak@k), ``curve`` (the metrics of ``answers`` at each
            of several steps) or ``rounded`` (those of ``answers``, and the score Q).
    """

    name: str
    title: str
    kind: str = "answers"


@dataclass
class Attack:
    """Base of the attacks; subclass it to add your own.

    Attributes:
        name: Name in options.
    """

    name: ClassVar[str]

    def conditions(self, subject: Subject) -> list[Condition]:
        """Return the conditions to try on this data.

        Raises:
            InputError: An option is out of range, or the data lacks what the attack needs.
        """
        raise InputError(f"The attack {type(self).__name__} does not define conditions().")

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, Measured]:
        """Measure a policy under a condition; collective, and the same rows on every process.

        Returns:
            Rows by name: the condition's, or for a curve ``{condition}_step{step}``. A row without a value has only its
            ``index`` and the ``reason``.
        """
        raise InputError(f"The attack {type(self).__name__} does not define measure().")

    def reads(self, subject: Subject, condition: Condition) -> Any:
        """Return further inputs of a condition as plain values, such as the retain rows it shows.

        After an interruption, stored results are reused only if these inputs are unchanged.
        """
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """The options, as plain values."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@dataclass(frozen=True)
class Asked:
    """Prompt of an attack, and the answer that the model should no longer give.

    Attributes:
        row: Row of the question.
        prompt: Token ids before the answer.
        target: Token ids of the answer, with the end-of-turn token if it has one.
        question: Question for a reader; of a conversation, all turns before the answer.
        answer: Text that a generation is compared with.
    """

    row: Source
    prompt: list[int]
    target: list[int]
    question: str
    answer: str

    @property
    def example(self) -> Example:
        """Token ids and labels of the prompt with the answer."""
        return self.prompt + self.target, [IGNORED] * len(self.prompt) + self.target


def plainly(subject: Subject) -> list[Asked]:
    """Ask the questions as the benchmark does."""
    return [ask(subject.style, row, row["question"]) for row in subject.forget]


def ask(style: PromptStyle, row: Source, question: str, opening: str = "") -> Asked:
    """Build the prompt and the target of a row for a given wording of its question.

    Args:
        style: Prompt style.
        row: The row; with ``messages`` the question replaces the last turn of the user.
        question: Wording of the question.
        opening: Text that the answer is forced to begin with, before the true answer.
    """
    if "messages" in row and isinstance(style, ChatStyle):
        *before, last = row["messages"][:-1]
        turns = [*before, {**last, "content": question}]
        prompt, question = style.conversation_prompt(turns), conversation(turns)
    else:
        prompt = style.prompt(question)
    if opening:
        prompt = prompt + style.answer_ids(opening)
    ids, labels = style.join(prompt, row["answer"])
    first = first_supervised(labels)
    return Asked(row, ids[:first], ids[first:], question, row["answer"])


def measure_answers(policy: nn.Module, subject: Subject, asked: Sequence[Asked]) -> Measured:
    """Score the true answers and generate the policy's own; collective, with the same result on every process.

    Paraphrased and wrong answers are scored if `Subject.compares` is true and the prompt holds no part of the answer.

    Returns:
        One row per question, with every field that `dipo_lightning.evaluation.questions` measures on a forget row, and
        ``rouge``, the ROUGE-L F1 as MUSE computes it (of MUSE's questions from the generation before the next
        question). Values that are not finite are None, and so is ROUGE for an answer without words, such as ".". A row
        without a value has only its ``index`` and the ``reason``.
    """
    examples: list[Example] = []
    plans = [_plan(subject, one, examples) for one in asked]
    options = Measuring(subject.batch_tokens, subject.generation_rows, subject.max_new_tokens)
    rows = measure_plans(policy, subject.style, plans, examples, options, subject.device, subject.progress)
    return [_measured(subject, plan, row) for plan, row in zip(plans, rows, strict=True)]


def _measured(subject: Subject, plan: Plan, row: Row) -> dict[str, Any]:
    if reason := problem(row):
        return {"index": row["index"], "reason": reason}
    said = str(subject.style.tokenizer.decode(plan.said or [], skip_special_tokens=True))
    rouge = rouge_l([subject.answer_part(said)], [row["answer"]], stemmer=False).f1.item()
    wordless = {} if words(row["answer"]) else {"rouge": None, "rouge_l_recall": None}
    measured: dict[str, Any] = finite({**row, "rouge": rouge, **wordless})
    return measured


def _plan(subject: Subject, asked: Asked, examples: list[Example]) -> Plan:
    """Plan a question, and add its answers to the examples."""
    wrong, paraphrases = [], []
    if subject.compares and asked.answer == asked.row["answer"]:
        join, row = subject.style.join, asked.row
        wrong = [join(asked.prompt, text) for text in row.get("perturbed_answer") or ()]
        paraphrases = [join(asked.prompt, text) for text in (row.get("paraphrased_answer"),) if text is not None]
    first = len(examples)
    examples.append(asked.example)
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


class Plain(Attack):
    """Baseline without an attack: the questions as the benchmark asks them."""

    name = "plain"

    def conditions(self, subject: Subject) -> list[Condition]:
        """Return the one condition.

        Raises:
            InputError: There are no forget rows.
        """
        if not subject.forget:
            raise InputError("There are no forget rows to attack with; give the data that was unlearned.")
        return [Condition("plain", "plain question")]

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, Measured]:
        """Measure the plain questions."""
        return {condition.name: measure_answers(policy, subject, plainly(subject))}
