"""Reductions of token values: to sequences, and to a mean over the global batch."""

from __future__ import annotations

import torch
from torch import Tensor

from dipo_lightning.errors import InputError


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
    """Average over tokens or sequences, against a local or a global count.

    Under data parallelism and gradient accumulation the mean is over the *global* batch; the caller then passes its
    number of tokens or sequences (times whatever the gradient averaging divides by).

    Args:
        values: (N,) token or sequence values.
        denominator: Divisor of the sum; None is N (1 when N is 0, so that the result is 0).

    Returns:
        Scalar.
    """
    return values.sum() / (max(values.numel(), 1) if denominator is None else denominator)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Name the dtype that probabilities are computed in: float64 where any input is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
