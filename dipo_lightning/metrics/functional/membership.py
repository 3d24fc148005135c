"""Membership inference: memorisation, Min-K and further scores of texts, AUCs, and PrivLeak.

Every score behaves like a loss: it is low for a text the model has seen.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from dipo_lightning.errors import InputError


def exact_memorization(correct: Tensor) -> float:
    """Share of a row's tokens that are predicted correctly.

    Args:
        correct: (n,) bool, whether the most probable token is the right one.

    Returns:
        A number between 0 and 1; NaN without tokens.
    """
    return (correct.sum() / correct.numel()).item()


def extraction_strength(correct: Tensor) -> float:
    """1 - k/n, with k the length of the shortest prefix of a row after which all tokens are predicted correctly.

    It is 1 when every token is right and 0 when the last one is wrong (k = n: nothing can be extracted).

    Args:
        correct: (n,) bool, in the order of the tokens.

    Returns:
        A number between 0 and 1; NaN without tokens.
    """
    wrong = (~correct).nonzero().flatten()
    prefix = wrong[-1] + 1 if len(wrong) else torch.tensor(0)
    return (1 - prefix / correct.numel()).item()


FRACTION = 0.4
"""Share of the tokens over which Min-K averages, as in MUSE; the papers on Min-K and Min-K++ use 0.2."""

# Floor of the variance of the log-probabilities at a position, as open-unlearning sets it.
_LEAST_VARIANCE = 1e-6


def min_k(logprobs: Tensor, fraction: float = FRACTION) -> float:
    """Minus the mean of the `int(fraction * n)` lowest token log-probabilities of a row (at least one).

    Args:
        logprobs: (n,) log-probability of each token in nats; for Min-K++ the `standardized_logprobs`.
        fraction: Share of the tokens that counts; MUSE takes 0.4, the paper 0.2.

    Returns:
        Score, low for texts the model has seen, in nats for log-probabilities; NaN without tokens.

    Raises:
        ValueError: The fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of tokens must be in (0, 1], got {fraction}")
    kept = max(1, int(fraction * logprobs.numel()))
    return -logprobs.sort().values[:kept].mean().item()


def standardized_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each token, standardised by the mean and standard deviation of log p under the prediction.

    Args:
        logits: (N, V) at the supervised positions.
        labels: (N,) int64 tokens.

    Returns:
        (N,) float32 `(log p(label) - mu) / sigma`, whose `min_k` is Min-K++.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    probabilities = logprobs.exp()
    possible = probabilities > 0
    # 0 * log 0 counts as 0, also where a model masks tokens with -inf.
    mean = torch.where(possible, probabilities * logprobs, 0.0).sum(-1, keepdim=True)
    variance = torch.where(possible, probabilities * (logprobs - mean).square(), 0.0).sum(-1)
    chosen = logprobs.gather(-1, labels.unsqueeze(-1)) - mean
    return chosen.squeeze(-1) / variance.clamp(min=_LEAST_VARIANCE).sqrt()


def zlib_score(nll: float, text: str) -> float:
    """Loss per compressed byte (Carlini et al., 2021), which separates memorised from merely repetitive text.

    Args:
        nll: Mean token NLL of the text in nats.
        text: The text.

    Returns:
        `nll / len(zlib(text))`.
    """
    return nll / len(zlib.compress(text.encode("utf-8")))


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
    """Area under the ROC curve of a loss-like score: 1 if all members score lower, 0.5 at chance.

    This is open-unlearning's direction; PrivLeak's is the opposite (`privleak_auc`).

    Args:
        members: (n,) scores of the texts that were trained on.
        others: (m,) scores of texts that were not.

    Returns:
        Scalar P(member < other), ties counted half; NaN where a sample is empty.
    """
    return rank_auc(others, members)


def privleak_auc(forget: Tensor, holdout: Tensor) -> Tensor:
    """AUC in PrivLeak's direction: P(s_holdout < s_forget), ties counted half; 0 if the forget set is memorised.

    Args:
        forget: (n,) Min-K scores of the forget set.
        holdout: (m,) Min-K scores of texts that were never trained on.

    Returns:
        Scalar between 0 and 1; NaN where a sample is empty.
    """
    return rank_auc(forget, holdout)


def privleak(auc: float | Tensor, auc_retrain: float | Tensor) -> float:
    """100 (AUC - AUC_retrain) / AUC_retrain, in percent.

    Near 0 is good; a very negative value means that too little was unlearned, a positive one, too much.

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
