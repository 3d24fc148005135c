"""Truth ratio R = wrong / correct of a row, in log space, in its three published variants.

R is below 1 when the model finds the right answer more probable than the wrong ones. It is kept as log R: two
probabilities that both underflow would make it 0/0 on a collapsed model, and log R orders the rows just as R does.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from dipo_lightning.errors import InputError

TruthRatioVariant = Literal["geometric", "arithmetic", "open_unlearning"]
TRUTH_RATIO_VARIANTS: tuple[str, ...] = get_args(TruthRatioVariant)

LOG_EPSILON = math.log(1e-10)
"""Logarithm of what open-unlearning adds to every denominator."""


def log_truth_ratio(correct_nll: Tensor, wrong_nll: Tensor, variant: str = "geometric") -> Tensor:
    """Natural logarithm of R of each row.

    Args:
        correct_nll: (...,) mean token NLL of the correct (paraphrased) answer in nats.
        wrong_nll: (..., K) the same of the K wrong answers.
        variant: `geometric` (TOFU's code and every published table that could be checked): the geometric mean of the
            wrong answers' probabilities over the correct one's; `arithmetic` (the paper's text): their arithmetic mean;
            `open_unlearning`: geometric with 1e-10 added to the denominator, as to those of the inverse in
            `forget_truth_ratio` and of `normalized_probability`.

    Returns:
        (...,) log R; NaN where there is no wrong answer.

    Raises:
        InputError: The variant is unknown.
    """
    check_truth_ratio_variant(variant)
    if variant == "arithmetic":
        if wrong_nll.shape[-1] == 0:
            return torch.full_like(correct_nll, math.nan)
        return torch.logsumexp(-wrong_nll, dim=-1) - math.log(wrong_nll.shape[-1]) + correct_nll
    log_wrong = -wrong_nll.mean(dim=-1)
    if variant == "geometric":
        return log_wrong + correct_nll
    return log_wrong - torch.logaddexp(-correct_nll, torch.full_like(correct_nll, LOG_EPSILON))


def check_truth_ratio_variant(variant: str) -> None:
    """Refuse an unknown variant.

    Raises:
        InputError: The variant is not one of `TRUTH_RATIO_VARIANTS`.
    """
    if variant not in TRUTH_RATIO_VARIANTS:
        raise InputError(f"unknown truth ratio {variant!r}: choose one of {', '.join(TRUTH_RATIO_VARIANTS)}")


def forget_truth_ratio(log_ratio: Tensor, variant: str = "geometric") -> Tensor:
    """Truth ratio of the forget set: mean of min(R, 1/R), 1 when right and wrong answers are equally likely.

    Args:
        log_ratio: (n,) log R.
        variant: `open_unlearning` takes 1 / (R + 1e-10) for the inverse.

    Returns:
        Scalar between 0 and 1; NaN without rows.
    """
    if variant != "open_unlearning":
        return torch.exp(-log_ratio.abs()).mean()
    inverse = -torch.logaddexp(log_ratio, torch.full_like(log_ratio, LOG_EPSILON))
    return torch.exp(torch.minimum(log_ratio, inverse)).mean()


def utility_truth_ratio(log_ratio: Tensor) -> Tensor:
    """Truth ratio of the other sets: mean of max(0, 1 - R), 1 when the right answer is far the likelier.

    Args:
        log_ratio: (n,) log R.

    Returns:
        Scalar between 0 and 1; NaN without rows.
    """
    return (-torch.expm1(log_ratio)).clamp(min=0).mean()


def truth_probability(correct_nll: Tensor, wrong_nll: Tensor, variant: str = "geometric") -> Tensor:
    """Probability of the correct answer over the sum of it and of the wrong ones' mean: 1 / (1 + R).

    open-unlearning's `prob_mean` (its measure of how much is known; Dorna et al., 2025, arXiv 2506.12618), in the form
    of each variant of R.

    Args:
        correct_nll: (...,) mean token NLL of the correct (paraphrased) answer in nats.
        wrong_nll: (..., K) the same of the K wrong answers.
        variant: `open_unlearning` adds 1e-10 to the denominator of this fraction, and not to that of R.

    Returns:
        (...,) between 0 and 1; NaN where there is no wrong answer.

    Raises:
        InputError: The variant is unknown.
    """
    plain = "geometric" if variant == "open_unlearning" else variant
    log_share = -torch.nn.functional.softplus(log_truth_ratio(correct_nll, wrong_nll, plain))
    if variant == "open_unlearning":
        log_total = -correct_nll - log_share
        log_share = -correct_nll - torch.logaddexp(log_total, torch.full_like(log_total, LOG_EPSILON))
    return log_share.exp()
