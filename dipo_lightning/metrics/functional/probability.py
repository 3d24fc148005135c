"""Probability of an answer, plain and against the wrong options (TOFU, Maini et al., 2024, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from dipo_lightning.metrics.functional.truth_ratio import LOG_EPSILON


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
