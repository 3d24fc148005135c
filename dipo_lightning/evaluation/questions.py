"""Evaluated rows of questions with answers: every answer is scored once, every question answered once.

The answers of all rows are collected first and scored in one plan over all sets, so that rows of similar length share
batches; every number is then computed from these scores.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.prompts import ChatStyle
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.answering import Question, score_and_answer
from dipo_lightning.evaluation.generation import BATCH_ROWS, generate
from dipo_lightning.evaluation.rows import EvaluatedRows, Measuring, Progress, Row, no_progress
from dipo_lightning.evaluation.scoring import TokenScores, score
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.metrics.functional.membership import (
    exact_memorization,
    extraction_strength,
    min_k,
    zlib_score,
)
from dipo_lightning.metrics.functional.text import rouge_l
from dipo_lightning.models.answers import IGNORED

MAX_NEW_TOKENS = 200
Source = Mapping[str, Any]
"""A row to be measured, as read."""


@dataclass(frozen=True)
class Measurement:
    """Scoring and greedy decoding of a policy with an evaluation's options and progress bars.

    Attributes:
        policy: A ``transformers`` causal LM or a peft model around one.
        stop_ids: Token ids that end a continuation.
        options: Options of the measurement.
        device: Device of the batches; None for that of the policy's parameters.
        progress: Progress bar.
    """

    policy: nn.Module
    stop_ids: Sequence[int]
    options: Measuring
    device: torch.device | None
    progress: Progress

    def score(self, examples: Sequence[Example], what: str, z_scores: Collection[int] = ()) -> list[TokenScores]:
        """Score examples; see `dipo_lightning.evaluation.scoring.score`."""
        tokens, device = self.options.batch_tokens, self.device
        with self.progress(len(examples), what) as done:
            return score(self.policy, examples, batch_tokens=tokens, z_scores=z_scores, device=device, progress=done)

    def generate(self, prompts: Sequence[list[int]], what: str, **options: Any) -> list[list[int]]:
        """Continue prompts; see `dipo_lightning.evaluation.generation.generate`."""
        with self.progress(len(prompts), what) as done:
            return generate(self.policy, prompts, stop_ids=self.stop_ids, device=self.device, progress=done, **options)


@dataclass
class Plan:
    """Plan of one row: the indices of its examples, and the policy's answer once it is generated.

    Attributes:
        set_name: Name of its set.
        index: Index of the row.
        source: The row as read, with ``question`` and ``answer`` as text.
        prompt: Token ids before the answers.
        answer: Index of the true answer's example.
        wrong: Indices of the wrong answers' examples.
        paraphrase: Index of the paraphrased answer's example; None without one.
        detailed: Whether the row also gets memorisation and membership scores.
        asked: Whether the policy is asked for an answer of its own.
        ends: Whether the last token of the true answer ends the turn.
        length: Length of the true answer in tokens.
        said: Token ids of the policy's own answer.
        said_nll: Mean NLL per token of that answer in nats.
    """

    set_name: str
    index: int
    source: Source
    prompt: list[int]
    answer: int
    wrong: list[int]
    paraphrase: int | None = None
    detailed: bool = True
    asked: bool = True
    ends: bool = False
    length: int = 0
    said: list[int] | None = None
    said_nll: float | None = None

    @property
    def examples(self) -> list[int]:
        """Indices of the examples of all its answers."""
        return [self.answer, *self.wrong, *([] if self.paraphrase is None else [self.paraphrase])]


def evaluate_rows(
    policy: nn.Module,
    style: PromptStyle,
    sets: Mapping[str, Sequence[Source]],
    options: Measuring,
    *,
    detailed: Sequence[str] = ("forget", "holdout"),
    silent: Sequence[str] = ("holdout",),
    device: torch.device | None = None,
    progress: Progress = no_progress,
) -> EvaluatedRows:
    """Measure every row of every set; collective, with the same result on every process.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one.
        style: Prompt style.
        sets: Rows by set, with ``question``, ``answer`` and, where available, ``paraphrased_answer`` and
            ``perturbed_answer`` (wrong answers). A chat style takes the prompt from ``messages``, if a row has them.
        options: Options of the measurement; by default 200 new tokens and 64 rows per generation batch.
        detailed: Sets whose answers also get memorisation and membership scores.
        silent: Sets whose questions are not answered by the policy.
        device: Device of the batches; by default that of the policy's parameters.
        progress: Progress bar.
    """
    evaluated = EvaluatedRows({name: [] for name in sets})
    examples: list[Example] = []
    plans = _plan(style, sets, detailed, examples, evaluated, options.on_missing)
    for plan in plans:
        plan.asked = options.generate and plan.set_name not in silent
    rows = measure_plans(policy, style, plans, examples, options, device, progress)
    for plan, row in zip(plans, rows, strict=True):
        if reason := problem(row):
            evaluated.skip(plan.set_name, plan.index, reason, options.on_missing)
        else:
            evaluated.sets[plan.set_name].append(row)
    return evaluated


def measure_plans(
    policy: nn.Module,
    style: PromptStyle,
    plans: Sequence[Plan],
    examples: Sequence[Example],
    options: Measuring,
    device: torch.device | None = None,
    progress: Progress = no_progress,
) -> list[Row]:
    """Measure planned rows; collective, with the same result on every process. Values may be infinite or NaN."""
    work = Measurement(policy, style.stop_ids, options, device, progress)
    limits = {
        "max_new_tokens": options.max_new_tokens or MAX_NEW_TOKENS,
        "batch_rows": options.generation_rows or BATCH_ROWS,
    }
    asked = [plan for plan in plans if plan.asked]
    scores = answer_and_score(work, plans, asked, examples, limits)
    _score_said(work, [plan for plan in asked if plan.detailed and plan.said_nll is None])
    return [_row(plan, scores, style, options.min_k_fraction) for plan in plans]


def _plan(
    style: PromptStyle,
    sets: Mapping[str, Sequence[Source]],
    detailed: Sequence[str],
    examples: list[Example],
    evaluated: EvaluatedRows,
    on_missing: str,
) -> list[Plan]:
    """Tokenise each question and each of its answers once."""
    plans = []
    for set_name, rows in sets.items():
        for position, row in enumerate(rows):
            index = row.get("index", position)
            wrong, paraphrase = row.get("perturbed_answer") or (), row.get("paraphrased_answer")
            texts = [row["answer"], *wrong, *([] if paraphrase is None else [paraphrase])]
            try:
                prompt = _prompt(style, row)
                made = [style.join(prompt, text) for text in texts]
            except InputError as error:
                evaluated.skip(set_name, index, str(error), on_missing)
                continue
            first, count = len(examples), len(wrong)
            examples.extend(made)
            plans.append(
                Plan(
                    set_name=set_name,
                    index=index,
                    source=row,
                    prompt=prompt,
                    answer=first,
                    wrong=list(range(first + 1, first + 1 + count)),
                    paraphrase=None if paraphrase is None else first + 1 + count,
                    detailed=set_name in detailed,
                    ends=made[0][1][-1] in style.stop_ids,
                    length=sum(label != IGNORED for label in made[0][1]),
                )
            )
    return plans


def _prompt(style: PromptStyle, row: Source) -> list[int]:
    """Return the token ids before the answer, those of the question or of the conversation so far."""
    if "messages" in row and isinstance(style, ChatStyle):
        return style.conversation_prompt(row["messages"][:-1])
    prompt = style.prompt(row["question"])
    if not prompt:
        raise InputError("The text is too short: its first half has no token to continue from.")
    return prompt


def answer_and_score(
    work: Measurement,
    plans: Sequence[Plan],
    asked: Sequence[Plan],
    examples: Sequence[Example],
    limits: Mapping[str, int],
) -> list[TokenScores]:
    """Score all answers, and answer the questions, as many as possible from the same forward passes."""
    wanted = {plan.answer for plan in plans if plan.detailed}
    questions = [Question(plan.prompt, plan.examples, plan.length) for plan in asked]
    with work.progress(len(questions), "questions answered") as done:
        scores, said = score_and_answer(
            work.policy,
            examples,
            questions,
            stop_ids=work.stop_ids,
            batch_tokens=work.options.batch_tokens,
            z_scores=wanted,
            device=work.device,
            progress=done,
            **limits,
        )
    for number, found in said.items():
        asked[number].said, asked[number].said_nll = found
    rest = [index for index in range(len(examples)) if index not in scores]
    z_scores = [place for place, index in enumerate(rest) if index in wanted]
    others = work.score([examples[index] for index in rest], "answers scored", z_scores)
    scores |= dict(zip(rest, others, strict=True))
    unanswered = [plan for plan in asked if plan.said is None]
    generated = work.generate(
        [plan.prompt for plan in unanswered],
        "questions answered",
        expected=[plan.length for plan in unanswered],
        known=[scores[plan.answer].greedy_start() for plan in unanswered],
        **limits,
    )
    for plan, ids in zip(unanswered, generated, strict=True):
        plan.said = ids
    return [scores[index] for index in range(len(examples))]


def _score_said(work: Measurement, plans: Sequence[Plan]) -> None:
    """Score the policy's own answers."""
    spoken = [plan for plan in plans if plan.said]
    examples = [(plan.prompt + plan.said, [IGNORED] * len(plan.prompt) + plan.said) for plan in spoken if plan.said]
    for plan, found in zip(spoken, work.score(examples, "own answers scored"), strict=True):
        plan.said_nll = found.nll


def _row(plan: Plan, scores: Sequence[TokenScores], style: PromptStyle, fraction: float) -> Row:
    """Compute the fields of a row from its scores."""
    text = None if plan.said is None else style.text(plan.said)
    answer = scores[plan.answer]
    nll = answer.nll
    row: Row = {
        "index": plan.index,
        "question": plan.source["question"],
        "answer": plan.source["answer"],
        "nll": nll,
        "tokens": answer.tokens,
        "correct_nll": nll if plan.paraphrase is None else scores[plan.paraphrase].nll,
        "wrong_nll": [scores[i].nll for i in plan.wrong],
        "generation": text,
        "rouge_l_recall": None if text is None else rouge_l([text], [plan.source["answer"]]).recall.item(),
    }
    if plan.detailed and plan.said is not None:
        row["generation_nll"], row["generation_tokens"] = plan.said_nll, len(plan.said)
    if plan.detailed:
        row.update(_details(answer, plan, fraction))
    return row


def _details(answer: TokenScores, plan: Plan, fraction: float) -> Row:
    """Memorisation and membership scores of one answer.

    As in open-unlearning, all but the loss and the zlib score leave out the token that ends the turn: a model that
    recites an answer and never stops has memorised it.
    """
    nll = answer.nll
    answer = answer.without_last() if plan.ends and answer.tokens == plan.length else answer  # else it was cut before
    assert answer.z_scores is not None
    return {
        "exact_memorization": exact_memorization(answer.correct),
        "extraction_strength": extraction_strength(answer.correct),
        "min_k": min_k(answer.logprobs, fraction),
        "min_k_plus_plus": min_k(answer.z_scores, fraction),
        "zlib": zlib_score(nll, plan.source["answer"]),
        "loss": nll,
    }


def problem(row: Row) -> str | None:
    """Return the reason why a measured row has no value, or None; answers that share a prompt are NaN together."""
    if not row["tokens"]:
        return "Its prompt fills the model's positions, so that no token of its answer is scored."
    values: dict[str, list[float | None]] = {"answer": [row["nll"]]}
    if "correct_nll" in row:
        values |= {"correct answer": [row["correct_nll"]], "wrong answers": row["wrong_nll"]}
    if row.get("generation_nll") is not None:
        values["own answer"] = [row["generation_nll"]]
    bad = {name: nlls for name, nlls in values.items() if not torch.tensor(nlls).isfinite().all()}
    return f"The log-likelihood of its {', its '.join(bad)} is not finite ({bad})." if bad else None
