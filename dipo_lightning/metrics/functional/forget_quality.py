"""Forget quality: the two-sample Kolmogorov-Smirnov test between truth ratios, exact for any size.

The p-value equals `scipy.stats.ks_2samp(..., method="exact")` for samples of one size. It is computed with integers,
so that its logarithm is right where the p-value itself is too small for a floating-point number: at n = 541 and D = 1
it is below 1e-323.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ForgetQualityResult(NamedTuple):
    """Outcome of the test: `p`, `log10_p` (finite even where p is 0.0), the statistic `d` and the rows `n`."""

    p: float
    log10_p: float
    d: float
    n: int


def ks_distance(first: Tensor, second: Tensor) -> int:
    """Largest difference between the two empirical counts, `n * D`, an integer.

    Args:
        first: (n,) values of any dtype without NaN.
        second: (n,) values, as many.

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

    Of the C(2n, n) lattice paths from (0, 0) to (n, n), those that reach a distance of at least h from the diagonal
    number `2 * sum_{k>=1} (-1)^(k+1) C(2n, n - k h)` by the reflection principle (Gnedenko and Korolyuk, 1951).

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
    """Two-sided test between the truth ratios of a model and of the model trained without the forget set.

    The test sees only the order of the values, so log R serves as well as R. A p at one n does not compare with a p at
    another.

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
