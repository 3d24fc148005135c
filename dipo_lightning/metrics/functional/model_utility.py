"""The mean behind model utility (TOFU, Maini et al., 2024, section 2.2)."""

from __future__ import annotations

from torch import Tensor


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
