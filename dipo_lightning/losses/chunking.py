"""Reductions of token values, and token values from hidden states in memory independent of the vocabulary size.

There are two ways, both exact, in chunks of positions:

- `in_chunks` runs any function on a chunk's positions, keeps no intermediate values, and runs it again in the backward
  pass.
- `ClosedForm` is for values whose gradient on the logits is a vector d that can be recomputed. With x the hidden state
  of a token, W the output projection and u the upstream gradient of the token's value, the gradient on x is u W^T d and
  that on W is the sum of u d x^T over the tokens. The forward pass keeps W^T d, of hidden size; d itself, of vocabulary
  size, is kept only if one chunk holds all positions.

A vocabulary-sized buffer takes 100 MB and more, and allocating one on a CPU costs as much as several passes over it:
buffers are made once per call, and filled piece by piece while the piece is in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from dipo_lightning.errors import InputError, check_numbers


def sequence_sum(values: Tensor, sequence_ids: Tensor, batch_size: int) -> Tensor:
    """Sum token values over each sequence.

    Args:
        values: (N,) one value per selected position.
        sequence_ids: (N,) int64, the sequence that each position belongs to, in [0, batch_size).
        batch_size: Number of sequences B; sequences without a position are allowed.

    Returns:
        (B,) sums in the dtype of `values`; 0 for a sequence without a position.
    """
    return values.new_zeros(batch_size).index_add(0, sequence_ids, values)


def sequence_length(sequence_ids: Tensor, batch_size: int) -> Tensor:
    """Count the selected positions of each sequence: (B,) int64."""
    return sequence_ids.new_zeros(batch_size).index_add(0, sequence_ids, sequence_ids.new_ones(sequence_ids.shape))


def sequence_places(sequence_ids: Tensor, batch_size: int) -> Tensor:
    """Number the selected positions of each sequence from 0: (N,) int64, for ascending `sequence_ids`."""
    length = sequence_length(sequence_ids, batch_size)
    return torch.arange(len(sequence_ids), device=length.device) - (length.cumsum(0) - length)[sequence_ids]


def sequence_mean(values: Tensor, sequence_ids: Tensor, batch_size: int) -> Tensor:
    """Average token values over each sequence; arguments as for `sequence_sum`.

    Returns:
        (B,) means; 0 (never NaN) for a sequence without a position.
    """
    length = sequence_length(sequence_ids, batch_size)
    return sequence_sum(values, sequence_ids, batch_size) / length.clamp(min=1)


def sequence_reduce(values: Tensor, sequence_ids: Tensor, batch_size: int, reduction: str) -> Tensor:
    """Reduce token values to sequence values by name: "sum" or "mean".

    Raises:
        InputError: `reduction` is another name.
    """
    if reduction == "sum":
        return sequence_sum(values, sequence_ids, batch_size)
    if reduction == "mean":
        return sequence_mean(values, sequence_ids, batch_size)
    raise InputError(f"reduction is {reduction!r}; use 'sum' or 'mean'")


def global_mean(values: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Average over tokens or sequences, dividing by a local or a global count.

    Under data parallelism and gradient accumulation the mean is over the *global* batch. The caller then passes its
    number of tokens or sequences, divided by the number of ranks and micro-batches over which gradients are averaged.

    Args:
        values: (N,) token or sequence values.
        denominator: Divisor of the sum; None is N (1 when N is 0, so that the result is 0).

    Returns:
        Scalar.
    """
    return values.sum() / (max(values.numel(), 1) if denominator is None else denominator)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype that probabilities are computed in: float64 if any input is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


_CACHE_PIECE = 256


def check_projection(hidden: Tensor, weight: Tensor, name: str) -> None:
    """Raise an `InputError` with the model and both shapes if hidden states do not fit a projection."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise InputError(
            f"{name} hidden states {tuple(hidden.shape)} do not fit the output projection {tuple(weight.shape)}; "
            "give (positions, hidden size) and (vocabulary, hidden size)"
        )


def align(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the dtype a linear layer would compute in: autocast's if it is on, else the weight's."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype)


def slices(count: int, size: int) -> Iterator[slice]:
    """Cut range(count) into slices of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def piece_size(device: torch.device, chunk_size: int) -> int:
    """Choose the number of positions computed at once inside a chunk: few on a CPU (its cache), all elsewhere."""
    return min(chunk_size, _CACHE_PIECE) if device.type == "cpu" else chunk_size


def vocabulary_buffer(hidden: Tensor, weight: Tensor, chunk_size: int, *others: Tensor) -> Tensor:
    """Make an uninitialised (positions of a chunk, V) buffer, float64 if ``weight`` or another is, else float32."""
    dtype = working_dtype(weight, *others)
    return torch.empty(min(len(hidden), chunk_size), len(weight), dtype=dtype, device=hidden.device)


def project(hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Write logits hidden @ weight^T into a contiguous float32 or float64 buffer `out` (n, V), and return it."""
    if out.dtype == weight.dtype:
        return torch.mm(hidden, weight.t(), out=out)
    return out.copy_(hidden @ weight.t())


def in_chunks(function: Callable[..., tuple[Tensor, ...]], chunk_size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Apply ``function`` to a few positions at a time, and compute each chunk again for the gradient.

    Args:
        function: Returns (n, ...) tensors for the same n positions of each input; torch draws the same random numbers
            in it both times. Tensors in its closure may be differentiated too.
        chunk_size: Number of positions whose values inside ``function`` are in memory at the same time.
        *inputs: (N, ...) tensors.

    Returns:
        (N, ...) tensors, differentiable if ``function`` is.

    Raises:
        InputError: ``chunk_size`` is below 1.
    """
    check_numbers("", {"chunk_size": chunk_size})
    parts = [
        checkpoint(function, *(value[chunk] for value in inputs), use_reentrant=False)
        for chunk in list(slices(len(inputs[0]), chunk_size)) or [slice(0, 0)]
    ]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


class ClosedForm(torch.autograd.Function):
    """Base of functions whose first inputs are ``hidden`` (N, H) and ``weight`` (V, H), of one dtype.

    A subclass's forward pass returns (N,) values, computed from vectors d, and ends with `keep`.
    """

    @staticmethod
    def keep(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        directions: Tensor | None,
        vectors: Tensor,
        chunk_size: int,
        fill: Callable[..., object],
        *others: Tensor,
    ) -> None:
        """Save the tensors and functions from which `backward` computes the gradients.

        Args:
            ctx: Autograd's context.
            hidden: (N, H).
            weight: (V, H).
            directions: (N, H) vectors times weight, float32 or float64; may be None if ``hidden`` needs no gradient.
            vectors: (n, V) vectors of the last chunk: all of them if one chunk holds all positions.
            chunk_size: Number of positions whose vectors are in memory at the same time.
            fill: Called with a slice, a buffer (n, V), hidden, weight and the others; writes the vectors of the slice.
            *others: Further tensors needed to recompute the vectors.
        """
        whole = ctx.needs_input_grad[1] and len(hidden) <= chunk_size
        ctx.fill, ctx.chunk_size = fill, chunk_size
        ctx.save_for_backward(hidden, weight, directions, vectors.to(weight.dtype) if whole else None, *others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients on ``hidden`` (N, H) and ``weight`` (V, H), each in its dtype, or None.

        Args:
            ctx: Autograd's context.
            upstream: (N,) gradient on the values, float32 or float64.
            *_: Gradients on other outputs, which have none.
        """
        for_hidden, for_weight, *rest = ctx.needs_input_grad
        # Read once: activation checkpointing gives no tensor a second time.
        hidden, weight, directions, vectors, *others = ctx.saved_tensors
        grad_hidden = grad_weight = None
        if for_hidden:
            grad_hidden = (directions * upstream.unsqueeze(-1)).to(hidden.dtype)
        if for_weight:
            weighted, total = hidden * upstream.unsqueeze(-1), WeightGradient(weight)
            if vectors is not None:
                total.add(vectors, weighted)
            else:
                space = vocabulary_buffer(hidden, weight, ctx.chunk_size, upstream)
                for chunk in slices(len(hidden), ctx.chunk_size):
                    out = space[: chunk.stop - chunk.start]
                    ctx.fill(chunk, out, hidden, weight, *others)
                    total.add(out, weighted[chunk])
            grad_weight = total.result()
        return grad_hidden, grad_weight, *([None] * len(rest))


class WeightGradient:
    """Accumulator of sum_t d_t hidden_t^T over chunks in one (V, H) tensor."""

    def __init__(self, weight: Tensor) -> None:
        self.total: Tensor | None = None
        self._weight = weight

    def add(self, vectors: Tensor, hidden: Tensor) -> None:
        """Add vectors (n, V) transposed times hidden (n, H)."""
        left, right = vectors.to(self._weight.dtype).t(), hidden.to(self._weight.dtype)
        if self.total is None:
            self.total = left @ right
        else:
            self.total.addmm_(left, right)

    def result(self) -> Tensor:
        """Return the sum; zero if nothing was added."""
        return torch.zeros_like(self._weight) if self.total is None else self.total
