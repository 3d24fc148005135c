"""Likelihood of answers: truth ratio, probability, the mean behind model utility (TOFU, arXiv 2401.06121, 2.2)."""

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


def answer_probability(nll: Tensor) -> Tensor:
    """Length-normalised probability of an answer.

    Args:
        nll: (B,) mean token negative log-likelihood in nats, end-of-sequence token included.

    Returns:
        (B,) `exp(-nll)`, between 0 and 1.
    """
    return torch.exp(-nll)


def normalized_probability(nll: Tensor, wrong_nll: Tensor, variant: str = "geometric") -> Tensor:
    """Probability of the right answer among its options, `P / (P + sum_k P_k)`.

    Computed as a softmax of log-probabilities, so that a model to which every option is improbable gives a number and
    not 0/0.

    Args:
        nll: (B,) mean token NLL of the right answer in nats.
        wrong_nll: (B, K) the same of the K wrong answers.
        variant: `open_unlearning` adds its 1e-10 to the denominator; the other variants of the truth ratio don't.

    Returns:
        (B,) share of the right answer, between 0 and 1.
    """
    options = torch.cat([nll.unsqueeze(-1), wrong_nll], dim=-1)
    if variant == "open_unlearning":
        options = torch.cat([options, torch.full_like(options[..., :1], -LOG_EPSILON)], dim=-1)
    return torch.softmax(-options, dim=-1)[..., 0]


def harmonic_mean(values: Tensor) -> Tensor:
    """Harmonic mean of numbers that are not negative; 0 as soon as one of them is 0.

    Args:
        values: (n,) numbers >= 0.

    Returns:
        Scalar; NaN where a value is NaN.

    Raises:
        ValueError: There is no value, or one is negative.
    """
    if values.numel() == 0:
        raise ValueError("the harmonic mean of no numbers is undefined")
    if bool((values < 0).any()):
        raise ValueError(f"the harmonic mean needs numbers >= 0, got {values.tolist()}")
    return values.numel() / (1 / values).sum()
