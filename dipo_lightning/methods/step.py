"""Book-keeping of an optimiser step: its micro-batches' terms and rows, the report of a break, and random states."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor


class MicroBatch(NamedTuple):
    """Terms and rows of a micro-batch, kept until the optimiser steps, without a gradient.

    Attributes:
        rows: (B,) int64 of each part of the batch: where its rows stand in their data set.
        terms: Scalars, the terms of the loss by name.
        loss: Scalar.
    """

    rows: dict[str, Tensor]
    terms: dict[str, Tensor]
    loss: Tensor

    @classmethod
    def of(cls, loss: Tensor, batch: dict[str, Any], terms: dict[str, Tensor]) -> MicroBatch:
        """Take from a training batch, its loss and the loss's terms what is kept of them."""
        rows = {name: part["index"] for name, part in batch.items() if isinstance(part, dict) and "index" in part}
        return cls(rows, {name: value.detach() for name, value in terms.items()}, loss.detach())


def mean_terms(batches: Sequence[MicroBatch], accumulate: int) -> dict[str, Tensor]:
    """Return the loss and every term of an optimiser step, on this rank.

    The last step of an epoch may have fewer micro-batches than `accumulate`, which each was multiplied by.
    """
    parts = [{"loss": batch.loss, **batch.terms} for batch in batches]
    return {name: torch.stack([part[name] for part in parts]).sum() / accumulate for name in parts[0]}


def what_is_not_finite(numbers: Sequence[float], batches: list[MicroBatch]) -> tuple[str, list[MicroBatch]]:
    """Say what is not finite, the gradient's norm or a loss: a loss, if one is, for the norm follows it.

    ``numbers`` are the norm and the loss of each micro-batch. Returns the beginning of a sentence, and the
    micro-batches it is about: one, or all where each loss was finite.
    """
    norm, *losses = numbers
    for loss, batch in zip(losses, batches, strict=True):
        if not math.isfinite(loss):
            return f"The loss is {loss}", [batch]
    return f"The gradient's norm is {norm}", batches


def describe(what: str, batches: list[MicroBatch], trainer: pl.Trainer) -> str:
    """Say where the run was when ``what`` happened, the beginning of the sentence, and what can be done."""
    rows: dict[str, list[int]] = {}
    for parts, _, _ in batches:
        for part, index in parts.items():
            rows.setdefault(part, []).extend(index.tolist())
    terms = [{name: float(value) for name, value in values.items()} for _, values, _ in batches]
    good = last_good_checkpoint(trainer)
    return (
        f"{what} at step {trainer.global_step}. "
        f"Terms: {', '.join(map(str, terms)) or 'none'}. Rows of the batch: {rows}. "
        + (f"The last good checkpoint is {good}. " if good else "There is no checkpoint before it. ")
        + "Lower the learning rate, clip gradients (trainer.gradient_clip_val), or look at these rows."
    )


def last_good_checkpoint(trainer: pl.Trainer) -> str | None:
    """Return the checkpoint that was written last, by this package's callback or by Lightning's."""
    for callback in trainer.checkpoint_callbacks:
        for name in ("last_good", "last_model_path", "best_model_path"):
            if path := getattr(callback, name, None):
                return str(path)
    return None


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's, torch's and this process's GPU's generators: tensors and plain values.

    A checkpoint that is loaded with ``weights_only`` can hold nothing else.
    """
    version, words, normal = random.getstate()
    state: Any = np.random.get_state()
    name, keys, position, has_normal, cached = state
    return {
        "python": [version, torch.tensor(words), normal],
        "numpy": [str(name), torch.tensor(keys.astype(np.int64)), int(position), int(has_normal), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put every generator of this process into the states that `random_states` returned."""
    version, words, normal = states["python"]
    random.setstate((version, tuple(words.tolist()), normal))
    name, keys, position, has_normal, cached = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_normal, cached))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
