"""Forget losses that only push the answer's tokens down: gradient ascent, its weighted form, and CE-U.

Each is a mean over tokens; `denominator` is the global token count under data parallelism (see `token_mean`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.objectives.pair import working_dtype
from dipo_lightning.objectives.sequences import token_mean


def grad_ascent(nll: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Gradient ascent: minus the mean token NLL. Unbounded below. Source: TOFU, arXiv 2401.06121.

    GradDiff and KL are this loss with a retain term beside it.

    Args:
        nll: (N,) token NLL of the forget answers (`token_nll`).
        denominator: global token count; None uses N.

    Returns:
        Scalar.
    """
    return -token_mean(nll, denominator)


def wga(nll: Tensor, beta: float = 1.0, denominator: float | Tensor | None = None) -> Tensor:
    """Weighted gradient ascent: -mean(p^beta * NLL), the weight taken as a constant. Source: arXiv 2502.19301.

    Tokens that are already unlikely weigh little, which brakes the ascent.

    Args:
        nll: (N,) token NLL of the forget answers.
        beta: exponent, >= 0; 0 is gradient ascent.
        denominator: global token count; None uses N.

    Returns:
        Scalar.

    Raises:
        InputError: when beta is negative.
    """
    if not beta >= 0:
        raise InputError(f"beta is {beta!r}; use a number >= 0")
    weight = torch.exp(-beta * nll.detach())
    return -token_mean(weight * nll, denominator)


def ce_u(logits: Tensor, labels: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Cross-entropy unlearning: towards the policy's own distribution without the label. Source: arXiv 2503.01224.

    Args:
        logits: (N, V) policy logits on the forget answers.
        labels: (N,) int64 tokens to forget.
        denominator: global token count; None uses N.

    Returns:
        Scalar mean of CE(target, policy); the target is a constant.
    """
    logits = logits.to(working_dtype(logits))
    target = logits.detach().scatter(-1, labels.unsqueeze(-1), -math.inf).softmax(-1)
    return token_mean(-(target * logits.log_softmax(-1)).sum(-1), denominator)
