"""Model utility: the harmonic mean of nine numbers (TOFU, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UTILITY_SETS = ("retain", "real_authors", "world_facts")
UTILITY_PARTS = ("probability", "rouge", "truth_ratio")


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


def model_utility(parts: Sequence[float] | Tensor) -> Tensor:
    """Harmonic mean of {retain, real authors, world facts} x {probability, ROUGE-L recall, truth ratio}.

    Args:
        parts: The nine numbers, in any order, each between 0 and 1.

    Returns:
        Scalar, float64.

    Raises:
        ValueError: There are not nine numbers.
    """
    values = torch.as_tensor(parts, dtype=torch.float64)
    expected = len(UTILITY_SETS) * len(UTILITY_PARTS)
    if values.numel() != expected:
        raise ValueError(f"model utility is the harmonic mean of {expected} numbers, got {values.numel()}")
    return harmonic_mean(values.reshape(-1))
