"""Targets and losses of selective unlearning at single positions, on tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def blind_target(reference: Tensor, blind: Tensor, private: Tensor, banned: Tensor) -> Tensor:
    """Make the preferred distribution of each position.

    Args:
        reference: (n, V) logits of the reference.
        blind: (n, V) its logits without sight of the subject.
        private: (n,) bool, positions of private values.
        banned: (n, V) bool, tokens that the preferred distribution never says.

    Returns:
        (n, V) log-probabilities: those of the reference, at private positions of the blind one, without banned tokens.
    """
    logits = torch.where(private[:, None], blind, reference)
    return logits.masked_fill(banned, torch.finfo(logits.dtype).min).log_softmax(-1)


def and_repetition(banned: Tensor, before: Tensor) -> Tensor:
    """Also ban the token that stands before a position, so that no answer says one word again and again.

    Args:
        banned: (n, V) bool.
        before: (n,) int64, the token before; negative bans nothing.

    Returns:
        (n, V) bool.
    """
    token = before.clamp(min=0)[:, None]
    return banned.scatter(1, token, banned.gather(1, token) | (before >= 0)[:, None])


def contrast_loss(target: Tensor, reference: Tensor, logits: Tensor, beta: float) -> Tensor:
    """DiPO's loss per token, with the reference's distribution as the dispreferred one.

    Args:
        target: (n, V) log-probabilities of the preferred distribution.
        reference: (n, V) logits of the reference.
        logits: (n, V) the policy's.
        beta: Inverse temperature.

    Returns:
        (n,) -2/beta log sigmoid(beta u).
    """
    difference = target.exp() - reference.softmax(-1)
    margin = (difference * (logits - reference)).sum(-1)
    return -2 / beta * logsigmoid(beta * margin)


def excess(logits: Tensor, secret: Tensor, ceiling: float) -> Tensor:
    """Return the amount by which the log-probability of all secret tokens together lies above that of the ceiling.

    Args:
        logits: (n, V).
        secret: (n, V) bool, tokens that would begin or go on with a private word.
        ceiling: A probability.

    Returns:
        (n,) nats, 0 where they are at or below the ceiling, or where there are none.
    """
    lowest = torch.finfo(logits.dtype).min
    mass = logits.masked_fill(~secret, lowest).logsumexp(-1) - logits.logsumexp(-1)
    return (mass - math.log(ceiling)).clamp(min=0)


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen ones of (N,) values; 0, with a gradient of 0, where none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
