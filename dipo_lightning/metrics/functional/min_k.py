"""Min-K (Shi et al., 2024) and Min-K++ (Zhang et al., 2025) scores of texts: low for texts the model has seen."""

from __future__ import annotations

import torch
from torch import Tensor

FRACTION = 0.4
"""Share of the tokens that count: MUSE's; the papers take 0.2."""

# Floor of the variance of the log-probabilities at a position, as open-unlearning sets it.
_LEAST_VARIANCE = 1e-6


def min_k(logprobs: Tensor, rows: Tensor, count: int, fraction: float = FRACTION) -> Tensor:
    """Minus the mean of the `int(fraction * T)` lowest token log-probabilities of each row (at least one).

    Args:
        logprobs: (N,) log-probability of each token in nats.
        rows: (N,) int64 the row of each token.
        count: Number of rows B.
        fraction: Share of the tokens that counts; MUSE takes 0.4, the paper 0.2.

    Returns:
        (B,) score in nats, dtype of `logprobs`; NaN for a row without tokens.

    Raises:
        ValueError: The fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of tokens must be in (0, 1], got {fraction}")
    by_value = torch.argsort(logprobs)
    order = by_value[torch.argsort(rows[by_value], stable=True)]
    sorted_rows = rows[order]
    lengths = torch.bincount(rows, minlength=count)
    # float64, like the published `int(0.4 * T)`: in float32 the product may fall on the other side of an integer.
    kept = (lengths.cpu().double() * fraction).long().clamp(min=1).to(rows.device)
    rank = torch.arange(rows.numel(), device=rows.device) - (lengths.cumsum(0) - lengths)[sorted_rows]
    lowest = torch.where(rank < kept[sorted_rows], logprobs[order], torch.zeros_like(logprobs))
    total = torch.zeros(count, dtype=logprobs.dtype, device=logprobs.device).index_add_(0, sorted_rows, lowest)
    return torch.where(lengths > 0, -total / kept, torch.full_like(total, torch.nan))


def standardized_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each token, standardised by mean and deviation of log p under the prediction itself.

    Args:
        logits: (N, V) at the supervised positions.
        labels: (N,) int64 tokens.

    Returns:
        (N,) float32 `(log p(label) - mu) / sigma`; give it to `min_k_plus_plus`.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    probabilities = logprobs.exp()
    possible = probabilities > 0
    # 0 * log 0 counts as 0, also where a model masks tokens with -inf.
    mean = torch.where(possible, probabilities * logprobs, 0.0).sum(-1, keepdim=True)
    variance = torch.where(possible, probabilities * (logprobs - mean).square(), 0.0).sum(-1)
    chosen = logprobs.gather(-1, labels.unsqueeze(-1)) - mean
    return chosen.squeeze(-1) / variance.clamp(min=_LEAST_VARIANCE).sqrt()


def min_k_plus_plus(standardized: Tensor, rows: Tensor, count: int, fraction: float = FRACTION) -> Tensor:
    """Min-K of the standardised log-probabilities.

    Args:
        standardized: (N,) from `standardized_logprobs`.
        rows: (N,) int64 the row of each token.
        count: Number of rows B.
        fraction: Share of the tokens that counts.

    Returns:
        (B,) score, low for texts the model has seen; NaN for a row without tokens.

    Raises:
        ValueError: The fraction is not in (0, 1].
    """
    return min_k(standardized, rows, count, fraction)
