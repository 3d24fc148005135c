"""Negative log-likelihood of the supervised tokens: what every method beside DiPO is made of."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from dipo_lightning.objectives.pair import working_dtype
from dipo_lightning.objectives.sequences import sequence_reduce


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each supervised token.

    Args:
        logits: (N, V) logits at the positions that predict the tokens; bfloat16 and float16 are raised to float32.
        labels: (N,) int64 the tokens, all in [0, V): positions without supervision are not selected in the first place.

    Returns:
        (N,) nats, float32 (float64 for float64 logits).
    """
    # -1 can never be a label, so a stray -100 fails as an index instead of vanishing from a mean
    return cross_entropy(logits.to(working_dtype(logits)), labels, reduction="none", ignore_index=-1)


def sequence_nll(logits: Tensor, labels: Tensor, rows: Tensor, count: int, reduction: str = "sum") -> Tensor:
    """Compute the negative log-likelihood of each answer.

    Args:
        logits: (N, V) logits at the selected positions.
        labels: (N,) int64 tokens.
        rows: (N,) int64 row of each position.
        count: number of rows of the batch.
        reduction: `sum` (the answer's NLL) or `mean` (per token).

    Returns:
        (count,) nats; 0 for a row without positions.

    Raises:
        InputError: when `reduction` is unknown.
    """
    return sequence_reduce(token_nll(logits, labels), rows, count, reduction)
