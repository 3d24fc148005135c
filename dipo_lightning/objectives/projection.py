"""What the chunked objectives share: walking positions in chunks and projecting them into a buffer that is reused.

A vocabulary-sized buffer is 100 MB and more, and on a CPU asking the system for one costs as much as several passes
over it. So buffers are made once a call, and filled piece by piece while the piece is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

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
