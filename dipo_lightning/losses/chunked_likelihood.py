"""Token NLL from hidden states, chunk by chunk: cross-entropy without the (tokens, vocabulary) logits.

With p the policy's probabilities, W its output projection and y the label, nll = lse - <W_y, x>, its gradient on x is
W^T p - W_y and the one on W is the sum of (p - onehot) x^T. As in `chunked`, the forward keeps W^T p (hidden size a
token) and the backward makes p again, or keeps it where one chunk holds all positions. Any upstream weight a token is
allowed, which sequence losses (NPO, SimNPO, DPO) need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dipo_lightning.losses.chunking import (
    Kept,
    WeightGradient,
    align,
    check_chunk_size,
    check_projection,
    closed_gradients,
    keep,
    piece_size,
    project,
    slices,
)
from dipo_lightning.losses.reductions import working_dtype


def _residuals(hidden: Tensor, weight: Tensor, labels: Tensor, out: Tensor) -> Tensor:
    """Write softmax - onehot of each position into `out` (n, V).

    Returns:
        (n,) NLL.
    """
    values = []
    for piece in slices(len(hidden), piece_size(hidden.device, len(hidden))):
        logits = project(hidden[piece], weight, out[piece])
        places = labels[piece].unsqueeze(-1)
        chosen = logits.gather(-1, places)
        top, where = logits.max(-1, keepdim=True)
        probability = torch.softmax(logits, -1, out=logits)
        # softmax at the largest logit is 1 / sum exp(h - top): the log-sum-exp without another pass
        values.append((top - probability.gather(-1, where).log() - chosen).squeeze(-1))
        probability.scatter_add_(-1, places, torch.full_like(chosen, -1.0))
    return torch.cat(values)


class _ChunkedNLL(torch.autograd.Function):
    """Token NLL with the gradient worked out by hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
        """Compute the NLL of each token chunk by chunk.

        Args:
            ctx: Autograd's context.
            hidden: (N, H), in the dtype of ``weight``.
            weight: (V, H), of any floating-point dtype.
            labels: (N,) int64.
            chunk_size: Positions whose residuals (V numbers each) may live at the same time.

        Returns:
            (N,) nats, float32 or, where ``weight`` is float64, float64.
        """
        count, dtype = len(hidden), working_dtype(weight)
        buffer = _buffer(hidden, weight, min(count, chunk_size))
        nll = torch.empty(count, dtype=dtype, device=hidden.device)
        directions = torch.empty_like(hidden, dtype=dtype) if ctx.needs_input_grad[0] else None
        for chunk in slices(count, chunk_size):
            out = buffer[: chunk.stop - chunk.start]
            nll[chunk] = _residuals(hidden[chunk], weight, labels[chunk], out)
            if directions is not None:
                directions[chunk] = out.to(weight.dtype) @ weight
        keep(ctx, hidden, weight, directions, buffer, chunk_size, labels)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients on ``hidden`` (N, H) and ``weight`` (V, H), each in its dtype, or None.

        Args:
            ctx: Autograd's context.
            upstream: (N,) gradient on the NLLs, in their dtype.

        Returns:
            One for each argument of the forward pass; labels and chunk size get None.
        """
        kept = Kept.of(ctx)
        hidden, weight, (labels,) = kept.hidden, kept.weight, kept.others
        gradients = closed_gradients(
            ctx,
            kept,
            upstream,
            fill=lambda chunk, out: _residuals(hidden[chunk], weight, labels[chunk], out),
            buffer=lambda count: _buffer(hidden, weight, count),
        )
        return *gradients, None, None


class _SummedNLL(torch.autograd.Function):
    """The sum of all token NLLs: one upstream number for all, so both gradients are made in the forward pass."""

    # As torch.nn.functional.linear_cross_entropy does it, and as fast as that is with the same chunks in float32 (its
    # own choice of chunks is 6 times as slow on a CPU). But its loss has the dtype of the input: in bfloat16, 3 digits.

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
        """Compute the sum and, where they are needed, both its gradients, chunk by chunk.

        Args:
            ctx: Autograd's context.
            hidden: (N, H), in the dtype of ``weight``.
            weight: (V, H), of any floating-point dtype.
            labels: (N,) int64.
            chunk_size: Positions whose residuals (V numbers each) may live at the same time.

        Returns:
            () nats, float32 or, where ``weight`` is float64, float64.
        """
        for_hidden, for_weight, *_ = ctx.needs_input_grad
        buffer = _buffer(hidden, weight, min(len(hidden), chunk_size))
        total = hidden.new_zeros((), dtype=buffer.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden) if for_hidden else None, WeightGradient(weight)
        for chunk in slices(len(hidden), chunk_size):
            out = buffer[: chunk.stop - chunk.start]
            total += _residuals(hidden[chunk], weight, labels[chunk], out).sum()
            residuals = out.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = residuals @ weight
            if for_weight:
                grad_weight.add(residuals, hidden[chunk])
        ctx.save_for_backward(grad_hidden, grad_weight.result() if for_weight else None)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass made by ``upstream`` (), the gradient on the sum.

        Returns:
            (N, H) on ``hidden`` and (V, H) on ``weight``, each in its dtype, or None; None for labels and chunk size.
        """
        return (
            *(None if value is None else (value * upstream).to(value.dtype) for value in ctx.saved_tensors),
            None,
            None,
        )


def _buffer(hidden: Tensor, weight: Tensor, count: int) -> Tensor:
    """Make an uninitialised (count, V) buffer for residuals, float32 or, where the weight is float64, float64."""
    return torch.empty(count, len(weight), dtype=working_dtype(weight), device=hidden.device)


def _run(function: type[torch.autograd.Function], hidden: Tensor, weight: Tensor, labels: Tensor, size: int) -> Tensor:
    """Check, align the dtypes and run outside autocast."""
    check_chunk_size(size)
    check_projection(hidden, weight, "policy")
    hidden, weight = align(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = function.apply(hidden, weight, labels, size)
    return result


def chunked_nll(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int = 1024) -> Tensor:
    """Compute the NLL of each supervised token from hidden states; equal to `token_nll(hidden @ weight.T, labels)`.

    Args:
        hidden: (N, H) last hidden states (after the final norm) at the selected positions.
        weight: (V, H) output projection, without bias or soft cap.
        labels: (N,) int64 tokens in [0, V).
        chunk_size: positions whose vocabulary-sized values may live at the same time.

    Returns:
        (N,) nats, float32 (float64 for float64 inputs), differentiable once in `hidden` and `weight`.

    Raises:
        InputError: when shapes do not fit.
    """
    return _run(_ChunkedNLL, hidden, weight, labels, chunk_size)


def chunked_nll_sum(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int = 1024) -> Tensor:
    """Compute ``chunked_nll(...).sum()``, with the projection run once less where there are several chunks.

    Args:
        hidden: (N, H), as for `chunked_nll`.
        weight: (V, H).
        labels: (N,) int64.
        chunk_size: positions whose vocabulary-sized values may live at the same time.

    Returns:
        Scalar nats; nothing of vocabulary size per token is kept for its gradient.

    Raises:
        InputError: when shapes do not fit.
    """
    return _run(_SummedNLL, hidden, weight, labels, chunk_size)
