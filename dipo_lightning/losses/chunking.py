"""What the chunked objectives share: walking positions in chunks and projecting them into a buffer that is reused.

A vocabulary-sized buffer is 100 MB and more, and on a CPU asking the system for one costs as much as several passes
over it. So buffers are made once a call, and filled piece by piece while the piece is in the cache.

Gradients worked out by hand, for token values whose gradient on the logits is a vector that can be made again.

With d the vector of a token, x its hidden state, W the output projection and u the gradient on the token's value, the
gradient on x is u W^T d and the one on W is the sum of u d x^T over the tokens. So a forward pass keeps W^T d, of
hidden size; d itself, of vocabulary size, it keeps only where one chunk holds all positions.

All this is for autograd functions whose first two inputs are ``hidden`` (N, H) and ``weight`` (V, H), of one dtype.

Any token-wise objective in chunks of positions, for heads whose algebra allows no closed form.

A soft cap or a bias breaks what `chunked` stands on. What lies between hidden states and token values is then run chunk
by chunk, kept by no one, and run again in the backward pass: the memory doesn't grow with tokens x vocabulary either,
and the projection runs once more than on full logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dipo_lightning.errors import InputError

_CACHE_PIECE = 256


def check_projection(hidden: Tensor, weight: Tensor, name: str) -> None:
    """Check that hidden states fit an output projection.

    Raises:
        InputError: naming the pair and both shapes.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise InputError(
            f"{name} hidden states {tuple(hidden.shape)} do not fit the output projection {tuple(weight.shape)}; "
            "give (positions, hidden size) and (vocabulary, hidden size)"
        )


def check_chunk_size(chunk_size: int) -> None:
    """Check a chunk size.

    Raises:
        InputError: when it is not at least 1.
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}; use a number of positions >= 1")


def align(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both to the dtype a linear layer would compute in: autocast's where it is on, else the weight's."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype)


def slices(count: int, size: int) -> Iterator[slice]:
    """Cut range(count) into slices of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def piece_size(device: torch.device, chunk_size: int) -> int:
    """Choose how many positions to treat at once inside a chunk: few on a CPU (its cache), all elsewhere."""
    return min(chunk_size, _CACHE_PIECE) if device.type == "cpu" else chunk_size


def project(hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Write logits hidden @ weight^T into a float32 or float64 buffer.

    Args:
        hidden: (n, H), in the dtype of the weight.
        weight: (V, H).
        out: (n, V) contiguous.

    Returns:
        `out`.
    """
    if out.dtype == weight.dtype:
        return torch.mm(hidden, weight.t(), out=out)
    return out.copy_(hidden @ weight.t())


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


def in_chunks(function: Callable[..., tuple[Tensor, ...]], chunk_size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return what ``function`` gives for all positions, computed for few at a time and again for the gradient.

    Args:
        function: Gives (n, ...) tensors for the same n positions of each input; draws no random numbers. What it
            closes over may be differentiated too.
        chunk_size: Positions whose values inside ``function`` may live at the same time.
        *inputs: (N, ...) tensors.

    Returns:
        (N, ...) tensors, differentiable as ``function`` is.

    Raises:
        InputError: when ``chunk_size`` is below 1.
    """
    check_chunk_size(chunk_size)
    parts = [
        checkpoint(function, *(value[chunk] for value in inputs), use_reentrant=False, preserve_rng_state=False)
        for chunk in list(slices(len(inputs[0]), chunk_size)) or [slice(0, 0)]
    ]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))
