"""Relearning: a copy of the model is fine-tuned and measured at several steps, to see how fast the memory returns."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from dipo_lightning.benchmarks.robustness.attack import Attack, Condition, Subject, measure_answers, plainly
from dipo_lightning.data.encoding import TextStyle, start_ids
from dipo_lightning.data.tokenization import Pieces, Remembering
from dipo_lightning.errors import InputError, RunError, check_numbers, check_positive
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.losses.likelihood import token_nll
from dipo_lightning.models.answers import IGNORED, answer_logits, collate, supervised_labels
from dipo_lightning.models.distributed import evaluation_mode, plan_batches
from dipo_lightning.models.lora import LoRA, add_lora

TITLES = {"forget": "the forget rows", "retain": "retain rows alone", "unrelated": "unrelated text"}
TEXT_LENGTH = 2048
"""Length in tokens of the pieces of a training text (as MUSE's)."""
MUSE_STEPS = {"muse-books": (50, 75, 100), "muse-news": (100, 125, 150)}
"""Steps at which MUSE measures relearning, with lr 1e-5 and batches of 4."""


@dataclass
class Relearning(Attack):
    """Attack that fine-tunes a copy of the model, by default for one epoch as open-unlearning (arXiv 2506.12618) does.

    The copy is trained in float32, with AdamW at a constant learning rate and without dropout.

    Attributes:
        on: Training rows: ``forget``, ``retain`` or ``unrelated``; each gives a curve of its own.
        fraction: Share of the forget rows to train on, drawn by the seed; all rows are measured (Hu et al., 2024,
            arXiv 2406.13356, relearn from a small part).
        lr: Learning rate (open-unlearning for TOFU: 2e-5).
        batch_size: Rows per optimiser step (open-unlearning: 32), or pieces of running text.
        weight_decay: Weight decay of AdamW (open-unlearning's relearning: 0).
        epochs: Passes over the rows (open-unlearning: 1).
        max_steps: Number of optimiser steps, instead of ``epochs``; the rows are repeated as often as needed.
        measured_at: Steps after which the copy is measured, in addition to 0 and the last; empty for 1, 2, 4, 8, ...
        published: ``muse-books`` or ``muse-news``: the settings that MUSE published (lr 1e-5, batches of 4, and its
            steps), instead of ``lr``, ``batch_size``, ``max_steps`` and ``measured_at``.
        lora: Adapters to train instead of all weights, with the same learning rate.
        seed: Seed of the order of the rows.
    """

    on: tuple[str, ...] = ("forget",)
    fraction: float = 1.0
    lr: float = 2e-5
    batch_size: int = 32
    weight_decay: float = 0.0
    epochs: int = 1
    max_steps: int | None = None
    measured_at: tuple[int, ...] = ()
    published: Literal["muse-books", "muse-news"] | None = None
    lora: LoRA | None = None
    seed: int = 0

    name = "relearning"

    def __post_init__(self) -> None:
        """Apply the published settings, if any are named."""
        if self.published is not None:
            if self.published not in MUSE_STEPS:
                raise InputError(f"relearning.published is {self.published!r}; known are {', '.join(MUSE_STEPS)}.")
            self.measured_at = MUSE_STEPS[self.published]
            self.lr, self.batch_size, self.max_steps = 1e-5, 4, max(self.measured_at)

    def conditions(self, subject: Subject) -> list[Condition]:
        """Return a curve for each kind of rows.

        Raises:
            InputError: An option is out of its range, or there are no rows to train on.
        """
        check_positive(self.name, {"fraction": self.fraction}, most=1)
        check_positive(self.name, {"lr": self.lr})
        numbers = {"batch_size": self.batch_size, "epochs": self.epochs, "max_steps": self.max_steps}
        check_numbers(self.name, numbers)
        there = {"forget": subject.forget, "retain": subject.retain, "unrelated": subject.unrelated}
        for name in self.on:
            if name not in there:
                raise InputError(f"relearning.on has {name!r}; it may have {', '.join(there)}.")
            if not there[name]:
                raise InputError(f"relearning.on has {name!r}, but no {name} rows or texts were given.")
        return [Condition(f"relearn_{name}", f"relearning {TITLES[name]}", kind="curve") for name in self.on]

    def examples(self, subject: Subject, name: str) -> list[Example]:
        """Return the tokenised training rows, before shuffling; running text is cut into pieces of `TEXT_LENGTH`."""
        style = subject.style
        if name == "unrelated":
            return _pieces(TextStyle(style.tokenizer), subject.unrelated)
        rows = list((subject.trained or subject.forget) if name == "forget" else subject.retain)
        if name == "forget" and self.fraction < 1:
            count = max(1, round(self.fraction * len(rows)))
            rows = random.Random(f"rows {self.seed}").sample(rows, count)
        encode_row, plain = Remembering(style), TextStyle(style.tokenizer, end=False)
        return [one for row in rows for one in (_pieces(plain, [row["text"]]) if "text" in row else [encode_row(row)])]

    def reads(self, subject: Subject, condition: Condition) -> Any:
        """Return the training rows."""
        return self.examples(subject, condition.name.removeprefix("relearn_"))

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, list[dict[str, Any]]]:
        """Train a copy and measure the plain questions at each step of the curve."""
        examples = self.examples(subject, condition.name.removeprefix("relearn_"))
        steps = list(islice(batches(len(examples), self.batch_size, self.seed), self.last_step(len(examples))))
        measured = self.steps_measured(len(steps))
        asked, found = plainly(subject), {}
        pupil = self._copy(policy)

        def measure(step: int) -> None:
            name = f"{condition.name}_step{step}"
            with evaluation_mode(pupil):
                found[name] = subject.keep(name, lambda: measure_answers(pupil, subject, asked))

        measure(0)
        with subject.progress(len(steps), "steps relearnt") as done:
            for step in train(pupil, examples, steps, self.lr, self.weight_decay, subject):
                done(1)
                if step in measured:
                    measure(step)
        return found

    def last_step(self, rows: int) -> int:
        """Return the number of optimiser steps for that number of rows."""
        return self.max_steps or self.epochs * -(-rows // self.batch_size)

    def steps_measured(self, last: int) -> list[int]:
        """Return the steps after which the copy is measured, the last one included."""
        powers = (2**power for power in range(last.bit_length()))
        return sorted({step for step in self.measured_at or powers if 0 < step <= last} | {last})

    def _copy(self, policy: nn.Module) -> nn.Module:
        pupil: Any = copy.deepcopy(policy)
        if hasattr(pupil, "merge_and_unload"):
            pupil = pupil.merge_and_unload()
        pupil = pupil.float().requires_grad_(True)
        if self.lora is None:
            return pupil
        with isolate_rng():
            torch.manual_seed(self.seed)
            return add_lora(pupil, self.lora)


def _pieces(style: TextStyle, texts: Sequence[str]) -> list[Example]:
    """Cut each text into consecutive pieces, each with BOS if the tokenizer adds it."""
    start = start_ids(style.tokenizer)
    found: list[Example] = []
    for text in texts:
        ids = np.array(style.example("", text)[0][len(start) :], np.int32)
        found += [(piece["input_ids"], piece["labels"]) for piece in Pieces(ids, start, TEXT_LENGTH)]
    return found


def batches(rows: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield the rows of each optimiser step, endlessly; each epoch has its own order.

    Args:
        rows: Number of rows.
        batch_size: Rows per step; the last step of an epoch may have fewer.
        seed: Seed of the order, which is a function of seed and epoch.
    """
    epoch = 0
    while True:
        order = list(range(rows))
        random.Random(f"{seed} {epoch}").shuffle(order)
        yield from (order[start : start + batch_size] for start in range(0, rows, batch_size))
        epoch += 1


def train(
    policy: nn.Module,
    examples: Sequence[Example],
    steps: Sequence[list[int]],
    lr: float,
    weight_decay: float,
    subject: Subject,
) -> Iterator[int]:
    """Fine-tune a policy in place, yielding the number of each step after it is made.

    The loss of a step is the mean over all supervised tokens of its rows, however these are split to fit in memory.

    Args:
        policy: A ``transformers`` causal LM in float32, or a peft model around one.
        examples: Token ids and labels of each row.
        steps: Rows of each optimiser step.
        lr: Learning rate.
        weight_decay: Weight decay of AdamW.
        subject: Gives the device and the maximum number of tokens per forward pass.

    Raises:
        RunError: The loss is not finite.
    """
    device = subject.device or next(policy.parameters()).device
    optimizer = torch.optim.AdamW(
        [parameter for parameter in policy.parameters() if parameter.requires_grad], lr=lr, weight_decay=weight_decay
    )
    policy.eval()  # no dropout
    for step, rows in enumerate(steps, 1):
        tokens = sum(label != IGNORED for row in rows for label in examples[row][1])
        with torch.enable_grad():
            for part in plan_batches([len(examples[row][0]) for row in rows], subject.batch_tokens):
                loss = summed_loss(policy, [examples[rows[place]] for place in part], device) / max(1, tokens)
                if not loss.isfinite():
                    raise RunError(f"The loss of relearning is {loss.item()} at step {step}; take a smaller lr.")
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step


def summed_loss(policy: nn.Module, rows: Sequence[Example], device: torch.device) -> torch.Tensor:
    """Return the summed NLL of all supervised tokens of the rows, in nats."""
    batch = collate([{"input_ids": ids, "labels": labels, "index": 0} for ids, labels in rows])
    batch = {name: value.to(device) for name, value in batch.items()}
    return token_nll(answer_logits(policy, batch), supervised_labels(batch["labels"])).sum()
