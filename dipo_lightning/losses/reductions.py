"""From token values to sequence values: the only place where positions are put back into their rows."""

from __future__ import annotations

import torch
from torch import Tensor

from dipo_lightning.errors import InputError


def sequence_sum(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum token values over each sequence.

    Args:
        values: (N,) one value a selected position, row-major.
        rows: (N,) int64, the row of the batch that each position belongs to, in [0, count).
        count: number of rows B of the batch; rows without a position are allowed.

    Returns:
        (count,) sums in the dtype of `values`; 0 where a row has no position.
    """
    return values.new_zeros(count).index_add(0, rows, values)


def sequence_length(rows: Tensor, count: int) -> Tensor:
    """Count the selected positions of each row.

    Args:
        rows: (N,) int64, the row of each position.
        count: number of rows B of the batch.

    Returns:
        (count,) int64.
    """
    return rows.new_zeros(count).index_add(0, rows, rows.new_ones(rows.shape))


def sequence_mean(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Average token values over each sequence.

    Args:
        values: (N,) one value a selected position.
        rows: (N,) int64, the row of each position, in [0, count).
        count: number of rows B of the batch.

    Returns:
        (count,) means; 0 (never NaN) where a row has no position.
    """
    return sequence_sum(values, rows, count) / sequence_length(rows, count).clamp(min=1)


def sequence_reduce(values: Tensor, rows: Tensor, count: int, reduction: str) -> Tensor:
    """Reduce token values to sequence values by name: "sum" or "mean".

    Raises:
        InputError: when `reduction` is another name.
    """
    if reduction == "sum":
        return sequence_sum(values, rows, count)
    if reduction == "mean":
        return sequence_mean(values, rows, count)
    raise InputError(f"reduction is {reduction!r}; use 'sum' or 'mean'")


def token_mean(values: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Average over tokens, against a local or a global count.

    Under data parallelism and gradient accumulation the mean must be taken over the tokens of the *global* batch;
    the caller then passes that number (times whatever the gradient averaging divides by).

    Args:
        values: (N,) token values.
        denominator: what to divide the sum by; None divides by N (by 1 when N is 0, so that the result is 0).

    Returns:
        Scalar.
    """
    return values.sum() / (max(values.numel(), 1) if denominator is None else denominator)


def batch_mean(values: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Average sequence values over the batch: `token_mean` for (count,) vectors.

    Args:
        values: (count,) sequence values.
        denominator: number of sequences of the global batch; None uses `count`.

    Returns:
        Scalar.
    """
    return token_mean(values, denominator)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Name the dtype that probabilities are computed in: float64 where any input is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
