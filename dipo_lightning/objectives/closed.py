"""Gradients worked out by hand, for token values whose gradient on the logits is a vector that can be made again.

With d the vector of a token, x its hidden state, W the output projection and u the gradient on the token's value, the
gradient on x is u W^T d and the one on W is the sum of u d x^T over the tokens. So a forward pass keeps W^T d, of
hidden size; d itself, of vocabulary size, it keeps only where one chunk holds all positions.

All this is for autograd functions whose first two inputs are ``hidden`` (N, H) and ``weight`` (V, H), of one dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipo_lightning.objectives.projection import slices


class Kept(NamedTuple):
    """What a forward pass kept.

    Attributes:
        hidden: (N, H).
        weight: (V, H).
        directions: (N, H) the vectors times the weight, float32 or float64; None where nothing asked for them.
        vectors: (N, V) the vectors, in the dtype of the weight; None where the weight needs no gradient or they are to
            be made again.
        others: What making them again takes beside ``hidden`` and ``weight``.
    """

    hidden: Tensor
    weight: Tensor
    directions: Tensor | None
    vectors: Tensor | None
    others: tuple[Tensor, ...]

    @classmethod
    def of(cls, ctx: Any) -> Kept:
        """Take it out of a context, once a backward pass: activation checkpointing gives no tensor a second time."""
        hidden, weight, directions, vectors, *others = ctx.saved_tensors
        return cls(hidden, weight, directions, vectors, tuple(others))


def keep(
    ctx: Any,
    hidden: Tensor,
    weight: Tensor,
    directions: Tensor | None,
    vectors: Tensor,
    chunk_size: int,
    *others: Tensor,
) -> None:
    """Keep in a forward pass what the gradients take, for `Kept.of` in the backward pass.

    Args:
        ctx: The context of the autograd function.
        hidden: (N, H).
        weight: (V, H).
        directions: (N, H), as in `Kept`.
        vectors: (n, V) those of the last chunk, float32 or float64: all of them where one chunk holds all positions.
        chunk_size: Positions whose vectors may live at the same time.
        *others: As in `Kept`.
    """
    whole = ctx.needs_input_grad[1] and len(hidden) <= chunk_size
    ctx.chunk_size = chunk_size
    ctx.save_for_backward(hidden, weight, directions, vectors.to(weight.dtype) if whole else None, *others)


def closed_gradients(
    ctx: Any, kept: Kept, upstream: Tensor, fill: Callable[[slice, Tensor], object], buffer: Callable[[int], Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients in a backward pass.

    Args:
        ctx: The context that `keep` was given.
        kept: What `Kept.of` took out of it.
        upstream: (N,) gradient on the values, float32 or float64.
        fill: Writes the vectors of a slice of positions into (n, V).
        buffer: Makes an (n, V) tensor for it.

    Returns:
        Gradients on ``hidden`` and on ``weight``, in their shape and dtype, each None where it is not needed.
    """
    for_hidden, for_weight, *_ = ctx.needs_input_grad
    hidden, weight, directions, vectors, _ = kept
    grad_hidden = None
    if for_hidden and directions is not None:
        grad_hidden = (directions * upstream.unsqueeze(-1)).to(hidden.dtype)
    if not for_weight:
        return grad_hidden, None
    weighted = hidden * upstream.unsqueeze(-1)
    total = WeightGradient(weight)
    if vectors is not None:
        total.add(vectors, weighted)
        return grad_hidden, total.result()
    space = buffer(min(len(hidden), ctx.chunk_size))
    for chunk in slices(len(hidden), ctx.chunk_size):
        out = space[: chunk.stop - chunk.start]
        fill(chunk, out)
        total.add(out, weighted[chunk])
    return grad_hidden, total.result()


class WeightGradient:
    """Adds up sum_t d_t hidden_t^T over chunks in one (V, H) tensor."""

    def __init__(self, weight: Tensor) -> None:
        self.total: Tensor | None = None
        self._weight = weight

    def add(self, differences: Tensor, hidden: Tensor) -> None:
        """Add differences (n, V) transposed times hidden (n, H)."""
        left, right = differences.to(self._weight.dtype).t(), hidden.to(self._weight.dtype)
        if self.total is None:
            self.total = left @ right
        else:
            self.total.addmm_(left, right)

    def result(self) -> Tensor:
        """Give the sum; zero when nothing was added."""
        return torch.zeros_like(self._weight) if self.total is None else self.total
