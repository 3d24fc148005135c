"""RMU: steer one layer's hidden states on the forget text to a random direction. Source: arXiv 2403.03218."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dipo_lightning.objectives.pair import working_dtype
from dipo_lightning.objectives.sequences import token_mean


def control_vector(size: int, coefficient: float, seed: int = 0) -> Tensor:
    """Draw the fixed target: a random unit vector times a coefficient.

    Args:
        size: hidden size H.
        coefficient: length of the vector, usually 2 to 20.
        seed: of a generator of its own, so that every process and every resumed run draws the same vector.

    Returns:
        (H,) float32 on the CPU; entries uniform in [0, 1) before normalising, as published.
    """
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return normalize(direction, dim=0) * coefficient


def rmu_forget(hidden: Tensor, control: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Compute the mean squared distance of the forget hidden states to the control vector.

    Args:
        hidden: (N, H) the policy's hidden states of the steered layer at the selected positions.
        control: (H,) from `control_vector`.
        denominator: global token count; None uses N.

    Returns:
        Scalar, averaged over tokens and over H.
    """
    return rmu_retain(hidden, control.expand_as(hidden), denominator)


def rmu_retain(hidden: Tensor, reference_hidden: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Compute the mean squared distance of the retain hidden states to the reference's.

    Args:
        hidden: (N, H) the policy's hidden states of the steered layer.
        reference_hidden: (N, H) the frozen reference's, at the same positions.
        denominator: global token count; None uses N.

    Returns:
        Scalar, averaged over tokens and over H.
    """
    dtype = working_dtype(hidden)
    gap = hidden.to(dtype) - reference_hidden.detach().to(dtype)
    return token_mean(gap.square().mean(-1), denominator)
