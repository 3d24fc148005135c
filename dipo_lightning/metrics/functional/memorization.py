"""Exact memorisation (Tirumala et al., 2022) and extraction strength (Carlini et al., 2021) under teacher forcing."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Tell at each position whether the most probable token is the right one.

    Args:
        logits: (N, V) at the supervised positions.
        labels: (N,) int64 the tokens they should predict.

    Returns:
        (N,) bool.
    """
    return logits.argmax(dim=-1) == labels


def exact_memorization(correct: Tensor, rows: Tensor, count: int) -> Tensor:
    """Share of each row's tokens that are right.

    Args:
        correct: (N,) bool, row-major.
        rows: (N,) int64 the row of each token.
        count: Number of rows B.

    Returns:
        (B,) float32 between 0 and 1; NaN for a row without tokens.
    """
    lengths = torch.bincount(rows, minlength=count)
    right = torch.zeros(count, device=correct.device).index_add_(0, rows, correct.float())
    return right / lengths


def extraction_strength(correct: Tensor, rows: Tensor, count: int) -> Tensor:
    """1 - k/n with k the shortest prefix of a row after which all its later tokens are right.

    It is 1 when every token is right and 0 when the last one is wrong (k = n: nothing can be extracted).

    Args:
        correct: (N,) bool, row-major, the tokens of a row in order.
        rows: (N,) int64 the row of each token, not decreasing.
        count: Number of rows B.

    Returns:
        (B,) float32 between 0 and 1; NaN for a row without tokens.
    """
    lengths = torch.bincount(rows, minlength=count)
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(rows.numel(), device=rows.device) - starts[rows]
    needed = torch.where(correct, torch.zeros_like(position), position + 1)
    prefix = torch.zeros(count, dtype=torch.long, device=rows.device).scatter_reduce_(0, rows, needed, "amax")
    return 1 - prefix / lengths
