"""Targets and losses of selective unlearning at single positions, on tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MIN_P = 0.05
"""Probability beside that of the likeliest token, below which a token is left out where a private value stood.

The blind view is often sure of the very token that is banned. Scaled up to 1, its tail would be words that are none.
"""


def blind_target(reference: Tensor, blind: Tensor, private: Tensor, banned: Tensor) -> Tensor:
    """Compute the preferred distribution of each position.

    Args:
        reference: (n, V) logits of the reference.
        blind: (n, V) its logits with the subject masked out.
        private: (n,) bool, positions of private values.
        banned: (n, V) bool, tokens with probability 0 in the preferred distribution.

    Returns:
        (n, V) log-probabilities: of the blind view's likelier tokens (`MIN_P`) at private positions, of the reference
        elsewhere, without banned tokens.
    """
    lowest = torch.finfo(reference.dtype).min
    logits = torch.where(private[:, None], blind, reference).masked_fill(banned, lowest)
    unlikely = logits < logits.amax(-1, keepdim=True) + math.log(MIN_P)
    return logits.masked_fill(unlikely & private[:, None], lowest).log_softmax(-1)


def and_repetition(banned: Tensor, before: Tensor) -> Tensor:
    """Also ban the preceding token at each position, so that answers do not repeat a word.

    Args:
        banned: (n, V) bool.
        before: (n,) int64, the preceding token; a negative one bans nothing.

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
    """Return the excess of the secret tokens' total log-probability over that of the ceiling.

    Args:
        logits: (n, V).
        secret: (n, V) bool, tokens that would begin a private word or complete a private number.
        ceiling: A probability.

    Returns:
        (n,) nats, 0 at or below the ceiling and without secret tokens.
    """
    lowest = torch.finfo(logits.dtype).min
    mass = logits.masked_fill(~secret, lowest).logsumexp(-1) - logits.logsumexp(-1)
    return (mass - math.log(ceiling)).clamp(min=0)


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen ones of (N,) values; 0, with a gradient of 0, if none is chosen."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def padded(tokens: Sequence[Sequence[int]]) -> Tensor:
    """Return lists of N tokens as an (N, K) int64 tensor, filled with -1."""
    longest = max(map(len, tokens), default=0)
    rows = [[*one, *[-1] * (longest - len(one))] for one in tokens]
    return torch.tensor(rows, dtype=torch.long).reshape(len(tokens), longest)
