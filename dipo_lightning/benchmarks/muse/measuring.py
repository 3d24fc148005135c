"""Evaluated rows of MUSE: continued texts, answered questions, and texts scored token by token.

All texts are tokenised and checked before a model is loaded. The results do not depend on the number of processes.
Source: Shi et al., 2024 (arXiv 2407.06460), and their published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from dipo_lightning.benchmarks.muse.data import MUSEData
from dipo_lightning.data.encoding import TextStyle, encode, shortened, start_ids
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.questions import Measurement, Plan, answer_and_score
from dipo_lightning.evaluation.rows import EvaluatedRows, Measuring, Progress, Row, no_progress
from dipo_lightning.evaluation.scoring import TokenScores
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.metrics.functional.membership import (
    exact_memorization,
    extraction_strength,
    min_k,
    zlib_score,
)
from dipo_lightning.metrics.functional.text import rouge_l
from dipo_lightning.models.answers import IGNORED
from dipo_lightning.models.inspection import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_ENDS = ("\n\n", "\nQuestion", "Question:")
"""Texts that end the answer to a knowledge question, whichever comes first."""

OPEN_UNLEARNING_TOKENS = 2048
"""Number of tokens after the prompt or BOS to which open-unlearning cuts a text (its `max_length`)."""

BATCH_ROWS = 16
"""Maximum number of rows in a generation batch, small because prompts are long."""

MIN_KS = (5, 10, 20, 30, 40, 50, 60)
"""Values of K in percent for which muse_bench computes Min-K."""


class MUSERow(Row, total=False):
    """A row of MUSE.

    Attributes:
        lower: NLL of the text, divided by that of the same text in lower case.
        min_5: Min-K score of the text with K = 5 %, in nats.
        min_10: The same with 10 %.
        min_20: The same with 20 %.
        min_30: The same with 30 %.
        min_40: The same with 40 %.
        min_50: The same with 50 %.
        min_60: The same with 60 %.
    """

    lower: float | None
    min_5: float | None
    min_10: float | None
    min_20: float | None
    min_30: float | None
    min_40: float | None
    min_50: float | None
    min_60: float | None


@dataclass(frozen=True)
class MUSEOptions:
    """Options of MUSE's measurements; see `MUSEEvaluation`.

    Attributes:
        variant: ``muse``, or ``open_unlearning``: ROUGE compares stems, a continuation is compared with the whole true
            text, texts end after 2048 tokens, and Min-K, Min-K++ and memorisation leave out the last token.
        verbmem_tokens: Maximum length of a continuation in tokens, and (``muse``) of the true one.
        knowmem_tokens: Maximum length of an answer in tokens.
        space: ``prompt`` if the space after ``Answer:`` ends the prompt (as published), ``answer`` if it begins the
            answer.
        memorization: Whether the true continuations are scored token by token.
        lowercase: Whether PrivLeak's texts are scored in lower case too.
    """

    variant: str = "muse"
    verbmem_tokens: int = 128
    knowmem_tokens: int = 32
    space: str = "prompt"
    memorization: bool = True
    lowercase: bool = False

    @property
    def whole(self) -> bool:
        """True for open-unlearning's variant, which measures whole texts."""
        return self.variant == "open_unlearning"


@dataclass
class MUSEPlan:
    """Tokenised rows to measure; the lists of one set correspond item by item.

    Attributes:
        rows: Fields of each row that need no model, by set: ``index`` and texts.
        prompts: Token ids to generate from, by set (``verbmem``, ``knowmem_forget``, ``knowmem_retain``).
        targets: True texts of the generations, by set.
        examples: Token ids and labels to score, by set: ``privleak_forget``, ``_retain``, ``_holdout``, and the
            true continuation of each prompt.
        lowered: The same for the texts in lower case, by set.
        texts: Text of each example for the zlib score, by set.
        skipped: Rows that cannot be measured, by set.
        stop_ids: Token ids that end a generation.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    prompts: dict[str, list[list[int]]] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    lowered: dict[str, list[Example]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, list[Row]] = field(default_factory=dict)
    stop_ids: list[int] = field(default_factory=list)

    def longest(self, options: MUSEOptions) -> int:
        """Length in tokens of the longest sequence that the model will see.

        True continuations do not count: they are no longer than the generated ones, or (open-unlearning's variant) cut
        at the model's number of positions.
        """
        prompts = [len(ids) + new_tokens(name, options) for name, rows in self.prompts.items() for ids in rows]
        texts = (rows for name, rows in (*self.examples.items(), *self.lowered.items()) if name not in self.prompts)
        return max([*prompts, *(len(ids) for rows in texts for ids, _ in rows)], default=0)


def plan_muse(
    data: MUSEData, tokenizer: PreTrainedTokenizerBase, options: MUSEOptions, measuring: Measuring
) -> MUSEPlan:
    """Tokenise all texts of the evaluation; without ``measuring.generate``, only those that are scored.

    Raises:
        InputError: A text is too short for Min-K and ``on_missing`` is ``raise``, or no text of a set is long enough.
    """
    style = TextStyle(tokenizer, end=False)
    plan = MUSEPlan(stop_ids=list(style.stop_ids))
    if measuring.generate:
        _plan_generations(data, style, options, plan)
    for side, rows in data.privleak.items():
        _plan_texts(f"privleak_{side}", rows, style, options, measuring, plan)
    return plan


def _plan_generations(data: MUSEData, style: TextStyle, options: MUSEOptions, plan: MUSEPlan) -> None:
    tokenizer = style.tokenizer
    plan.rows["verbmem"] = [{"index": row["index"], "prompt": row["prompt"]} for row in data.verbmem]
    plan.prompts["verbmem"] = [style.prompt(row["prompt"]) for row in data.verbmem]
    plan.targets["verbmem"] = [
        row["gt"] if options.whole else beginning(row["gt"], tokenizer, options.verbmem_tokens) for row in data.verbmem
    ]
    most = OPEN_UNLEARNING_TOKENS if options.memorization else options.verbmem_tokens
    continued = zip(data.verbmem, plan.prompts["verbmem"], plan.targets["verbmem"], strict=True)
    plan.examples["verbmem"] = [
        _continued(style, ids, spaced(row["prompt"], target), most) for row, ids, target in continued
    ]
    for side, rows in data.knowmem.items():
        name = f"knowmem_{side}"
        shown = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in data.in_context[side])
        plan.rows[name] = [{"index": row["index"], "question": row["question"]} for row in rows]
        opening = "Answer: " if options.space == "prompt" else "Answer:"
        plan.prompts[name] = [style.prompt(f"{shown}Question: {row['question']}\n{opening}") for row in rows]
        plan.targets[name] = [row["answer"] for row in rows]
        plan.examples[name] = [
            _continued(style, ids, spaced(opening, target), options.knowmem_tokens)
            for ids, target in zip(plan.prompts[name], plan.targets[name], strict=True)
        ]


def _plan_texts(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    style: TextStyle,
    options: MUSEOptions,
    measuring: Measuring,
    plan: MUSEPlan,
) -> None:
    evaluated = EvaluatedRows()
    plan.rows[name], plan.examples[name], plan.lowered[name], plan.texts[name] = [], [], [], []
    for row in rows:
        example = _text_example(style, row["text"], options)
        tokens = sum(label != IGNORED for label in example[1])
        if int(measuring.min_k_fraction * (tokens - options.whole)) < 1:
            share = f"{measuring.min_k_fraction:.0%} of them are less than one"
            reason = f"Too short for Min-K: {shortened(row['text'])!r} has {tokens} tokens, and {share}."
            evaluated.skip(name, row["index"], reason, measuring.on_missing)
            continue
        plan.rows[name].append({"index": row["index"], "text": shortened(row["text"], 120), "tokens": tokens})
        plan.examples[name].append(example)
        scored = [label for label in example[1] if label != IGNORED]
        plan.texts[name].append(
            str(style.tokenizer.decode(scored, skip_special_tokens=True)) if options.whole else row["text"]
        )
        if options.lowercase:
            plan.lowered[name].append(_text_example(style, row["text"].lower(), options))
    if not plan.rows[name]:
        raise InputError(
            f"No text of {name.replace('_', '/')} can be scored. {evaluated.skipped[name][0]['reason']} Give longer "
            "texts, or a larger min_k_fraction."
        )
    plan.skipped |= evaluated.skipped


def _text_example(style: TextStyle, text: str, options: MUSEOptions) -> Example:
    """Return the ids and labels of a text."""
    example = style.example("", text)
    return _cut(example, len(start_ids(style.tokenizer)) + OPEN_UNLEARNING_TOKENS) if options.whole else example


def _continued(style: TextStyle, prompt: list[int], text: str, most: int) -> Example:
    """Return the ids and labels of a prompt with at most so many tokens of its true continuation; none if blank."""
    if not text.strip():
        return prompt, [IGNORED] * len(prompt)
    return _cut(style.join(prompt, text), len(prompt) + most)


def _cut(example: Example, length: int) -> Example:
    """Cut an example to a length in tokens."""
    ids, labels = example
    return ids[:length], labels[:length]


def spaced(prompt: str, text: str) -> str:
    """Return the continuation of a prompt with a separating space, unless either has one."""
    return text if prompt[-1:].isspace() or text[:1].isspace() else f" {text}"


_NOT_FINITE = "The log-likelihood of its tokens is not finite ({})."
"""Reason why a row has no value."""


def evaluate_muse(
    policy: nn.Module,
    plan: MUSEPlan,
    options: MUSEOptions,
    measuring: Measuring,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device | None = None,
    progress: Progress = no_progress,
) -> EvaluatedRows:
    """Measure every row; collective, with the same result on every process.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one.
        plan: Plan from `plan_muse`.
        options: Options with which the plan was made.
        measuring: The same.
        tokenizer: The model's tokenizer.
        device: Device of the batches; by default that of the policy's parameters.
        progress: Progress bar.

    Raises:
        InputError: A prompt or text is longer than the model's context, or a row has no value and ``on_missing`` is
            ``raise``.
    """
    _check_length(policy, plan.longest(options))
    evaluated = EvaluatedRows({name: [] for name in plan.rows})
    evaluated.skipped = {name: list(rows) for name, rows in plan.skipped.items()}
    work = Measurement(policy, plan.stop_ids, measuring, device, progress)
    whole = {name: examples for name, examples in plan.examples.items() if name not in plan.prompts}
    scores = _scored(work, whole, "texts scored", ("privleak_forget", "privleak_holdout"))
    lowered = _scored(work, plan.lowered, "texts scored in lower case") if options.lowercase else {}
    for name in plan.prompts:
        memorized = name == "verbmem" and options.memorization
        answered = zip(
            plan.rows[name], plan.targets[name], _answered(work, plan, name, options, measuring), strict=True
        )
        for row, target, (said, scored) in answered:
            if scored.tokens and not math.isfinite(scored.nll):
                evaluated.skip(name, row["index"], _NOT_FINITE.format(scored.nll), measuring.on_missing)
                continue
            memory = _memorized(scored, options) if memorized else {}
            measured = {**_generated(name, row, said, target, options, tokenizer), **memory}
            evaluated.sets[name].append(cast("Row", measured))
    for name, texts in plan.texts.items():
        for place, row in enumerate(plan.rows[name]):
            lower = lowered[name][place].nll if name in lowered else None
            found = _text_scores(scores[name][place], lower, texts[place], options, measuring)
            if bad := {key: value for key, value in found.items() if not math.isfinite(value)}:
                evaluated.skip(name, row["index"], _NOT_FINITE.format(bad), measuring.on_missing)
            else:
                evaluated.sets[name].append(cast("Row", {**row, **found}))
    return evaluated


def _scored(
    work: Measurement, sets: Mapping[str, list[Example]], what: str, z_sets: Sequence[str] = ()
) -> dict[str, list[TokenScores]]:
    """Score the examples of all sets together, with z-scores for those of ``z_sets``."""
    names = [name for name, examples in sets.items() for _ in examples]
    examples = [example for some in sets.values() for example in some]
    found = work.score(examples, what, [place for place, name in enumerate(names) if name in z_sets])
    return {name: [one for one, of in zip(found, names, strict=True) if of == name] for name in sets}


def _answered(
    work: Measurement, plan: MUSEPlan, name: str, options: MUSEOptions, measuring: Measuring
) -> list[tuple[list[int], TokenScores]]:
    """Continue the prompts of a set, and score their true continuations, from the same forward passes if possible."""
    answers = plan.examples[name]
    asked = [
        Plan(name, row["index"], row, ids, place, [], detailed=False, length=len(answers[place][0]) - len(ids))
        for place, (row, ids) in enumerate(zip(plan.rows[name], plan.prompts[name], strict=True))
    ]
    limits = {"max_new_tokens": new_tokens(name, options), "batch_rows": measuring.generation_rows or BATCH_ROWS}
    scores = answer_and_score(work, asked, asked, answers, limits)
    return [(one.said or [], scored) for one, scored in zip(asked, scores, strict=True)]


def _generated(
    name: str, row: Row, ids: list[int], target: str, options: MUSEOptions, tokenizer: PreTrainedTokenizerBase
) -> Row:
    """Return a row with the generated text and its ROUGE-L F1 against the true one."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    text = text if name == "verbmem" else answer_part(text)
    rouge = rouge_l([text], [target], stemmer=options.whole).f1.item()
    return {**row, "answer": target, "generation": text, "rouge": rouge}


def _memorized(scores: TokenScores, options: MUSEOptions) -> dict[str, float | None]:
    """Memorisation scores of one continuation."""
    scores = scores.without_last() if options.whole else scores
    measured = {"exact_memorization": exact_memorization, "extraction_strength": extraction_strength}
    values = {name: function(scores.correct) for name, function in measured.items()}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _text_scores(
    scores: TokenScores, lower_nll: float | None, text: str, options: MUSEOptions, measuring: Measuring
) -> dict[str, float]:
    """Membership scores of one text: the loss and its ratios, Min-K for all shares, Min-K++."""
    nll = scores.nll
    found = {"nll": nll, "zlib": zlib_score(nll, text)}
    if lower_nll is not None:
        found["lower"] = nll / lower_nll if lower_nll else math.nan
    scores = scores.without_last() if options.whole else scores
    for name, share in {"min_k": measuring.min_k_fraction, **{f"min_{k}": k / 100 for k in MIN_KS}}.items():
        found[name] = min_k(scores.logprobs, share)
    if scores.z_scores is not None:
        found["min_k_plus_plus"] = min_k(scores.z_scores, measuring.min_k_fraction)
    return found


def new_tokens(name: str, options: MUSEOptions) -> int:
    """Return the maximum number of tokens to generate for a row of a set."""
    return options.verbmem_tokens if name == "verbmem" else options.knowmem_tokens


def beginning(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """Return the first tokens of a text, decoded; BOS counts as one if the tokenizer adds it, as in MUSE's code."""
    start = len(start_ids(tokenizer))
    return str(tokenizer.decode(encode(tokenizer, text)[: max(1, tokens - start)], skip_special_tokens=True))


def answer_part(text: str) -> str:
    """Return a generation up to the beginning of the next question."""
    for end in ANSWER_ENDS:
        text = text.split(end)[0]
    return text


def _check_length(policy: nn.Module, longest: int) -> None:
    limit = context_length(policy)
    if limit is not None and longest > limit:
        raise InputError(
            f"MUSE's longest prompt or text has {longest} tokens (generated ones included), but the model's context is "
            f"{limit}. Take a model with a longer context, or shorten the texts."
        )
