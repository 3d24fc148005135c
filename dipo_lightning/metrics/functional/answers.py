"""Likelihood of answers: truth ratio, probability, the mean behind model utility (TOFU, 2401.06121), forget quality.

Forget quality is the two-sample Kolmogorov-Smirnov test between truth ratios, exact for any size: its p-value equals
`scipy.stats.ks_2samp(..., method="exact")` for samples of equal size. It is computed with integers, so that its
logarithm is right even if the p-value is too small for a floating-point number: at n = 541, D = 1 it is below 1e-323.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dipo_lightning.errors import InputError

TruthRatioVariant = Literal["geometric", "arithmetic", "open_unlearning"]
TRUTH_RATIO_VARIANTS: tuple[str, ...] = get_args(TruthRatioVariant)

LOG_EPSILON = math.log(1e-10)
"""Logarithm of the constant that open-unlearning adds to every denominator."""


def log_truth_ratio(correct_nll: float, wrong_nll: Sequence[float], variant: str = "geometric") -> float:
    """Natural logarithm of a row's truth ratio R.

    Args:
        correct_nll: Mean token NLL of the correct (paraphrased) answer in nats.
        wrong_nll: The same for each wrong answer.
        variant: `geometric` (TOFU's code and every published table that could be checked): the geometric mean of the
            wrong answers' probabilities over the correct one's; `arithmetic` (the paper's text): their arithmetic mean;
            `open_unlearning`: geometric with 1e-10 added to the denominator, as open-unlearning also does in
            `forget_truth_ratio` and `normalized_probability`.

    Returns:
        log R; NaN without a wrong answer.

    Raises:
        InputError: The variant is unknown.
    """
    check_truth_ratio_variant(variant)
    if len(wrong_nll) == 0:
        return math.nan
    correct, wrong = _double(correct_nll), _double(wrong_nll)
    if variant == "arithmetic":
        return (torch.logsumexp(-wrong, dim=0) - math.log(len(wrong)) + correct).item()
    if variant == "geometric":
        return (correct - wrong.mean()).item()
    return (-wrong.mean() - torch.logaddexp(-correct, _double(LOG_EPSILON))).item()


def check_truth_ratio_variant(variant: str) -> None:
    """Refuse an unknown variant.

    Raises:
        InputError: The variant is not one of `TRUTH_RATIO_VARIANTS`.
    """
    if variant not in TRUTH_RATIO_VARIANTS:
        raise InputError(f"unknown truth ratio {variant!r}: choose one of {', '.join(TRUTH_RATIO_VARIANTS)}")


def forget_truth_ratio(log_ratio: Tensor, variant: str = "geometric") -> Tensor:
    """Truth ratio of the forget set: mean of min(R, 1/R), 1 if right and wrong answers are equally likely.

    Args:
        log_ratio: (n,) log R.
        variant: `open_unlearning` uses 1 / (R + 1e-10) as the inverse.

    Returns:
        Scalar between 0 and 1; NaN without rows.
    """
    if variant != "open_unlearning":
        return torch.exp(-log_ratio.abs()).mean()
    inverse = -torch.logaddexp(log_ratio, torch.full_like(log_ratio, LOG_EPSILON))
    return torch.exp(torch.minimum(log_ratio, inverse)).mean()


def utility_truth_ratio(log_ratio: Tensor) -> Tensor:
    """Truth ratio of the other sets: mean of max(0, 1 - R), close to 1 if the right answer is far more likely.

    Args:
        log_ratio: (n,) log R.

    Returns:
        Scalar between 0 and 1; NaN without rows.
    """
    return (-torch.expm1(log_ratio)).clamp(min=0).mean()


def truth_probability(correct_nll: float, wrong_nll: Sequence[float], variant: str = "geometric") -> float:
    """Probability of the correct answer divided by its sum with the wrong answers' mean: 1 / (1 + R).

    This is open-unlearning's `prob_mean`, its measure of knowledge (Dorna et al., 2025, arXiv 2506.12618), extended to
    every variant of R.

    Args:
        correct_nll: Mean token NLL of the correct (paraphrased) answer in nats.
        wrong_nll: The same of the wrong answers.
        variant: `open_unlearning` adds 1e-10 to the denominator of this fraction, but not to that of R.

    Returns:
        A number between 0 and 1; NaN without a wrong answer.

    Raises:
        InputError: The variant is unknown.
    """
    if variant == "open_unlearning":
        log_correct, log_wrong = -_double(correct_nll), -_double(wrong_nll).mean()
        log_total = torch.logaddexp(log_correct, log_wrong)
        return (log_correct - torch.logaddexp(log_total, _double(LOG_EPSILON))).exp().item()
    log_ratio = _double(log_truth_ratio(correct_nll, wrong_nll, variant))
    return (-torch.nn.functional.softplus(log_ratio)).exp().item()


def answer_probability(nll: float) -> float:
    """Length-normalised probability of an answer.

    Args:
        nll: Mean token negative log-likelihood in nats, end-of-sequence token included.

    Returns:
        `exp(-nll)`, between 0 and 1.
    """
    return _double(-nll).exp().item()


def normalized_probability(nll: float, wrong_nll: Sequence[float], variant: str = "geometric") -> float:
    """Probability of the right answer among its options, `P / (P + sum_k P_k)`.

    Computed as a softmax of log-probabilities, so that a model that finds every option improbable gives a number, not
    0/0.

    Args:
        nll: Mean token NLL of the right answer in nats.
        wrong_nll: The same of the wrong answers.
        variant: `open_unlearning` adds its 1e-10 to the denominator; the other variants of the truth ratio don't.

    Returns:
        Share of the right answer, between 0 and 1.
    """
    options = [nll, *wrong_nll, *([-LOG_EPSILON] if variant == "open_unlearning" else [])]
    return torch.softmax(-_double(options), dim=0)[0].item()


def _double(values: float | Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def harmonic_mean(values: Tensor) -> Tensor:
    """Harmonic mean of non-negative numbers; 0 if one of them is 0.

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


class ForgetQualityResult(NamedTuple):
    """Outcome of the test: `p`, `log10_p` (finite even where p is 0.0), the statistic `d` and the rows `n`."""

    p: float
    log10_p: float
    d: float
    n: int


def ks_distance(first: Tensor, second: Tensor) -> int:
    """Largest difference between the empirical counts of two samples, the integer `n * D`.

    Args:
        first: (n,) values of any dtype without NaN.
        second: (n,) values, the same number.

    Returns:
        max over t of |#(first <= t) - #(second <= t)|, between 0 and n.

    Raises:
        ValueError: The samples are not 1-D, empty, of different sizes, or hold NaN.
    """
    if first.ndim != 1 or first.shape != second.shape or first.numel() == 0:
        raise ValueError(
            f"the test needs two 1-D samples of one size > 0, got {tuple(first.shape)}, {tuple(second.shape)}"
        )
    if bool(first.isnan().any()) or bool(second.isnan().any()):
        raise ValueError("the test cannot order NaN: leave such rows out of both samples")
    points = torch.cat([first, second])
    below_first = torch.searchsorted(first.sort().values, points, right=True)
    below_second = torch.searchsorted(second.sort().values, points, right=True)
    return int((below_first - below_second).abs().max())


def ks_log_probability(distance: int, n: int) -> tuple[float, float]:
    """Exact two-sided p-value of a distance, and its decimal logarithm.

    C(2n, n) lattice paths lead from (0, 0) to (n, n). By the reflection principle (Gnedenko and Korolyuk, 1951),
    `2 * sum_{k>=1} (-1)^(k+1) C(2n, n - k h)` of them reach a distance of at least h from the diagonal.

    Args:
        distance: h = n * D, between 0 and n.
        n: Size of each sample.

    Returns:
        p (0.0 where it underflows) and log10 p (always finite).
    """
    if distance == 0:
        return 1.0, 0.0
    total = coefficient = math.comb(2 * n, n)
    paths = 0
    for step in range(1, n + 1):
        # C(2n, n - step) from C(2n, n - step + 1): exact, and far cheaper than a binomial for each term.
        coefficient = coefficient * (n - step + 1) // (n + step)
        if step % distance == 0:
            paths += coefficient if (step // distance) % 2 else -coefficient
    p = 2 * paths / total
    log10_p = math.log10(p) if p > 1e-300 else math.log10(2 * paths) - math.log10(total)
    return p, log10_p


def forget_quality(log_ratio: Tensor, retain_log_ratio: Tensor) -> ForgetQualityResult:
    """Two-sided Kolmogorov-Smirnov test between the truth ratios of a model and of the retain model.

    The test depends only on the order of the values, so log R serves as well as R. p-values at different n are not
    comparable.

    Args:
        log_ratio: (n,) log R of the model's forget rows.
        retain_log_ratio: (n,) log R of the retain model on the same rows.

    Returns:
        p, log10 p, D and n.

    Raises:
        ValueError: The samples are not 1-D, empty, of different sizes, or hold NaN.
    """
    n = log_ratio.numel()
    distance = ks_distance(log_ratio, retain_log_ratio)
    p, log10_p = ks_log_probability(distance, n)
    return ForgetQualityResult(p=p, log10_p=log10_p, d=distance / n, n=n)
