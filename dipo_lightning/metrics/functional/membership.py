"""Membership inference: memorisation, Min-K and further scores of texts, AUCs, and PrivLeak.

Every score is like a loss: low for a text the model has seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dipo_lightning.errors import InputError


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


def zlib_score(nll: Tensor, texts: Sequence[str]) -> Tensor:
    """Loss per compressed byte (Carlini et al., 2021): sets apart what is probable from what is merely repetitive.

    Args:
        nll: (B,) mean token NLL of the texts in nats.
        texts: B texts.

    Returns:
        (B,) `nll / len(zlib(text))`.

    Raises:
        ValueError: There are not as many texts as losses.
    """
    if len(texts) != nll.numel():
        raise ValueError(f"as many texts as losses are needed, got {len(texts)} and {nll.numel()}")
    sizes = [len(zlib.compress(text.encode("utf-8"))) for text in texts]
    return nll / torch.tensor(sizes, dtype=nll.dtype, device=nll.device)


def rank_auc(positive: Tensor, negative: Tensor) -> Tensor:
    """P(negative < positive) + P(negative = positive) / 2 over all pairs: the exact area under the ROC curve.

    The scores are only ranked, never squashed into [0, 1]: a sigmoid would saturate and make distinct scores equal.

    Args:
        positive: (n,) scores without NaN.
        negative: (m,) scores without NaN.

    Returns:
        Scalar float64 (float32 on mps) between 0 and 1; NaN where a sample is empty.
    """
    precision = torch.float32 if positive.device.type == "mps" else torch.float64
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive.contiguous(), right=False)
    not_above = torch.searchsorted(ordered, positive.contiguous(), right=True)
    return (below + not_above).sum().to(precision) / (2 * positive.numel() * negative.numel())


def membership_auc(members: Tensor, others: Tensor) -> Tensor:
    """Area under the ROC curve of a loss-like score: 1 when all members score lower, 0.5 when nothing can be told.

    This is the sense in which open-unlearning reports attacks; PrivLeak's is the other way round (`privleak_auc`).

    Args:
        members: (n,) scores of the texts that were trained on.
        others: (m,) scores of texts that were not.

    Returns:
        Scalar P(member < other), ties counted half; NaN where a sample is empty.
    """
    return rank_auc(others, members)


def privleak_auc(forget: Tensor, holdout: Tensor) -> Tensor:
    """AUC as PrivLeak takes it: P(s_holdout < s_forget), ties counted half; 0 when the forget set is memorised.

    Args:
        forget: (n,) Min-K scores of the forget set.
        holdout: (m,) Min-K scores of texts that were never trained on.

    Returns:
        Scalar between 0 and 1; NaN where a sample is empty.
    """
    return rank_auc(forget, holdout)


def privleak(auc: float | Tensor, auc_retrain: float | Tensor) -> float:
    """100 (AUC - AUC_retrain) / AUC_retrain, in percent.

    Near 0 is good, very negative is under-unlearned, positive over-unlearned.

    Args:
        auc: `privleak_auc` of the model.
        auc_retrain: `privleak_auc` of the model trained without the forget set.

    Returns:
        PrivLeak in percent.

    Raises:
        InputError: `auc_retrain` is not in (0, 1]: there is nothing to divide by.
    """
    reference = float(auc_retrain)
    if not 0 < reference <= 1:
        raise InputError(
            f"PrivLeak divides by the AUC of the retain model, which must be in (0, 1]: got {reference}. "
            "Give the AUC of a model that was trained without the forget set (0.5 where none is known)."
        )
    return 100 * (float(auc) - reference) / reference
