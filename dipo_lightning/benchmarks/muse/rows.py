"""MUSE's evaluation rows: texts continued, questions answered, and texts scored token by token.

Everything is tokenised, and refused where it must be, before a model is there; measuring is then the same on any number
of processes. Source: Shi et al., 2024 (arXiv 2407.06460), and their published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dipo_lightning.benchmarks.muse.data import MUSEData
from dipo_lightning.data.encoding import encode, shortened, start_ids
from dipo_lightning.data.prompts import TextStyle
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import generate
from dipo_lightning.evaluation.rows import EvaluatedRows, Measuring, Progress, Row
from dipo_lightning.evaluation.scoring import TokenScores, score
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.metrics.functional.min_k import min_k
from dipo_lightning.metrics.functional.muse import muse_stemmer
from dipo_lightning.metrics.functional.rouge import rouge_l
from dipo_lightning.models.token_batch import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_ENDS = ("\n\n", "\nQuestion", "Question:")
"""Where the answer to a knowledge question ends, whatever comes first."""

OPEN_UNLEARNING_TOKENS = 2048
"""Tokens of a text, BOS among them, that open-unlearning's Min-K looks at (its `max_length`)."""


BATCH_ROWS = 16
"""Most rows of a generation batch: prompts are long."""


@dataclass(frozen=True)
class MUSEOptions:
    """Questions that are asked of MUSE's texts.

    Attributes:
        variant: ``muse``, or ``open_unlearning``: ROUGE compares stems, a continuation is compared with the whole true
            text, and Min-K looks at the first 2048 tokens of a text but not at the last of them.
        verbmem_tokens: Most tokens of a continuation, and (``muse``) of the true one it is compared with.
        knowmem_tokens: Most tokens of an answer.
        space: Whether the space after ``Answer:`` ends the prompt (as published) or begins the answer.
    """

    variant: str = "muse"
    verbmem_tokens: int = 128
    knowmem_tokens: int = 32
    space: str = "prompt"


@dataclass
class MUSEPlan:
    """Tokenised rows to measure; the lists of one set go together item by item.

    Attributes:
        rows: What is known of each row before a model is, by set: ``index``, and its texts.
        prompts: Token ids to generate from, by set (``verbmem``, ``knowmem_forget``, ``knowmem_retain``).
        targets: What the generation should be, by set.
        examples: Token ids and labels to score, by set (``privleak_forget``, ``_retain``, ``_holdout``).
        skipped: Rows that cannot be measured, by set.
        stop_ids: Where a generation ends.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    prompts: dict[str, list[list[int]]] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    skipped: dict[str, list[Row]] = field(default_factory=dict)
    stop_ids: list[int] = field(default_factory=list)

    def longest(self, options: MUSEOptions) -> int:
        """Tokens of the longest sequence that the model will see."""
        prompts = [len(ids) + new_tokens(name, options) for name, rows in self.prompts.items() for ids in rows]
        return max([*prompts, *(len(ids) for rows in self.examples.values() for ids, _ in rows)], default=0)


def plan_muse(
    data: MUSEData, tokenizer: PreTrainedTokenizerBase, options: MUSEOptions, measuring: Measuring
) -> MUSEPlan:
    """Tokenise everything that is to be measured.

    Args:
        data: The evaluation sets.
        tokenizer: The model's.
        options: See `MUSEOptions`.
        measuring: See `Measuring`; nothing is generated without ``generate``.

    Raises:
        InputError: A text is too short for Min-K and ``on_missing`` is ``raise``, or no text of a set is long enough.
    """
    style = TextStyle(tokenizer, end=False)
    plan = MUSEPlan(stop_ids=list(style.stop_ids))
    if measuring.generate:
        _plan_generations(data, style, options, plan)
    for side, rows in data.privleak.items():
        _plan_texts(f"privleak_{side}", rows, style, options.variant, measuring, plan)
    return plan


def _plan_generations(data: MUSEData, style: TextStyle, options: MUSEOptions, plan: MUSEPlan) -> None:
    tokenizer = style.tokenizer
    plan.rows["verbmem"] = [{"index": row["index"], "prompt": row["prompt"]} for row in data.verbmem]
    plan.prompts["verbmem"] = [style.prompt(row["prompt"]) for row in data.verbmem]
    whole = options.variant == "open_unlearning"
    plan.targets["verbmem"] = [
        row["gt"] if whole else beginning(row["gt"], tokenizer, options.verbmem_tokens) for row in data.verbmem
    ]
    for side, rows in data.knowmem.items():
        name = f"knowmem_{side}"
        shown = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in data.in_context[side])
        plan.rows[name] = [{"index": row["index"], "question": row["question"]} for row in rows]
        opening = "Answer: " if options.space == "prompt" else "Answer:"
        plan.prompts[name] = [style.prompt(f"{shown}Question: {row['question']}\n{opening}") for row in rows]
        plan.targets[name] = [row["answer"] for row in rows]


def _plan_texts(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    style: TextStyle,
    variant: str,
    measuring: Measuring,
    plan: MUSEPlan,
) -> None:
    evaluated = EvaluatedRows()
    plan.rows[name], plan.examples[name] = [], []
    for row in rows:
        example = _text_example(style, row["text"], variant)
        tokens = sum(label != -100 for label in example[1])
        if int(measuring.min_k_fraction * tokens) < 1:
            share = f"{measuring.min_k_fraction:.0%} of them are no whole token"
            reason = f"Too short for Min-K: {shortened(row['text'])!r} has {tokens} tokens, and {share}."
            evaluated.skip(name, row["index"], reason, measuring.on_missing)
            continue
        plan.rows[name].append({"index": row["index"], "text": shortened(row["text"], 120), "tokens": tokens})
        plan.examples[name].append(example)
    if not plan.rows[name]:
        raise InputError(
            f"No text of {name.replace('_', '/')} can be scored. {evaluated.skipped[name][0]['reason']} Give longer "
            "texts, or a larger min_k_fraction."
        )
    plan.skipped |= evaluated.skipped


def _text_example(style: TextStyle, text: str, variant: str) -> Example:
    """Ids and labels of a text; open-unlearning cuts it and does not score its last token, in place of an end token."""
    ids, labels = style.example("", text)
    if variant != "open_unlearning":
        return ids, labels
    ids, labels = ids[:OPEN_UNLEARNING_TOKENS], labels[:OPEN_UNLEARNING_TOKENS]
    return ids, [*labels[:-1], IGNORED]


def evaluate_muse(
    policy: nn.Module,
    plan: MUSEPlan,
    options: MUSEOptions,
    measuring: Measuring,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device | None = None,
    progress: Progress = lambda total, what: nullcontext(lambda done: None),
) -> EvaluatedRows:
    """Measure every row; collective, and the same on every process.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one.
        plan: From `plan_muse`.
        options: Those that the plan was made with.
        measuring: The same.
        tokenizer: The model's.
        device: Where the batches go; default is where the policy's parameters are.
        progress: Shows how far it is.

    Raises:
        InputError: A prompt or text is longer than what the model was made for, or a row has no value and
            ``on_missing`` is ``raise``.
    """
    _check_length(policy, plan.longest(options))
    evaluated = EvaluatedRows({name: [] for name in plan.rows})
    evaluated.skipped = {name: list(rows) for name, rows in plan.skipped.items()}
    for name, prompts in plan.prompts.items():
        with progress(len(prompts), name) as done:
            said = generate(
                policy,
                prompts,
                max_new_tokens=new_tokens(name, options),
                stop_ids=plan.stop_ids,
                batch_rows=measuring.generation_rows or BATCH_ROWS,
                device=device,
                progress=done,
            )
        for row, ids, target in zip(plan.rows[name], said, plan.targets[name], strict=True):
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            text = text if name == "verbmem" else answer_part(text)
            rouge = rouge_l([text], [target], stemmer=muse_stemmer(options.variant)).f1.item()
            evaluated.sets[name].append({**row, "answer": target, "generation": text, "rouge": rouge})
    examples = [example for name in plan.examples for example in plan.examples[name]]
    with progress(len(examples), "texts scored") as done:
        scores = iter(score(policy, examples, batch_tokens=measuring.batch_tokens, device=device, progress=done))
    for name in plan.examples:
        for row in plan.rows[name]:
            _add_scores(name, row, next(scores), measuring, evaluated)
    return evaluated


def _add_scores(name: str, row: Row, scores: TokenScores, measuring: Measuring, evaluated: EvaluatedRows) -> None:
    rows = torch.zeros(scores.tokens, dtype=torch.long)
    value = min_k(scores.logprobs, rows, 1, measuring.min_k_fraction)
    if not value.isfinite().all():
        reason = f"The log-likelihood of its tokens is not finite ({scores.nll})."
        evaluated.skip(name, row["index"], reason, measuring.on_missing)
        return
    evaluated.sets[name].append({**row, "min_k": value.item(), "nll": scores.nll})


def new_tokens(name: str, options: MUSEOptions) -> int:
    """Most tokens that are generated for a row of that set."""
    return options.verbmem_tokens if name == "verbmem" else options.knowmem_tokens


def beginning(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """The first tokens of a text; where the tokenizer puts BOS, it counts as one, as in the published code."""
    start = len(start_ids(tokenizer))
    return str(tokenizer.decode(encode(tokenizer, text)[: max(1, tokens - start)], skip_special_tokens=True))


def answer_part(text: str) -> str:
    """A generation up to where the next question begins."""
    for end in ANSWER_ENDS:
        text = text.split(end)[0]
    return text


def _check_length(policy: nn.Module, longest: int) -> None:
    limit = getattr(getattr(policy, "config", None), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise InputError(
            f"MUSE's longest prompt or text has {longest} tokens (with what is generated), but the model was made for "
            f"{limit}. Take a model with a longer context, or shorten the texts."
        )
