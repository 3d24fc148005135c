"""The DiPO forget loss on logits.

Written u for the margin, over the answer positions t of a sequence:

    u   = [SeqKL(dispreferred || policy) - SeqKL(preferred || policy)]
          - [SeqKL(dispreferred || reference) - SeqKL(preferred || reference)]
    L_f = -scale * log sigmoid(beta * u)

With d = preferred - dispreferred, u = sum_t <d_t, h_policy,t - h_reference,t>: d sums to zero over the vocabulary, so
both log-normalisers cancel and no log-softmax is needed. The rewards follow likewise. TDPO's token reward is

    r(z) = beta log(policy(z) / reference(z)) + beta KL(reference || policy)

and for a distribution p

    R(p) / beta = <p, h_policy - h_reference> - (lse_policy - lse_reference)
                  - <reference, h_policy - h_reference> + (lse_policy - lse_reference)
                = <p - reference, h_policy - h_reference>,

so u is the sum over t of R(preferred) - R(dispreferred), over beta. Source: TDPO, arXiv 2404.11999, for the reward;
arXiv 2510.04773 for the method, whose full text was not available: a reconstruction.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dipo_lightning.errors import InputError
from dipo_lightning.losses.reductions import sequence_length, sequence_reduce, working_dtype

Reduction = Literal["sum", "mean"]
Scale = Literal["2/beta", 1]


def margin(
    difference: Tensor,
    policy_logits: Tensor,
    retain_logits: Tensor,
    rows: Tensor,
    count: int,
    reduction: Reduction = "sum",
) -> Tensor:
    """Compute the margin u of each sequence.

    Args:
        difference: (N, V) preferred - dispreferred, without gradient (`pair_difference`).
        policy_logits: (N, V) policy logits at the selected positions; the gradient on them is the difference.
        retain_logits: (N, V) reference logits at the same positions.
        rows: (N,) int64 row of each position.
        count: number of rows of the batch.
        reduction: `sum` over the positions (sequence KL) or their `mean`.

    Returns:
        (count,) margins in nats (a token, for `mean`); 0 for a row without positions.

    Raises:
        InputError: when `reduction` is unknown.
    """
    dtype = working_dtype(difference, policy_logits, retain_logits)
    gap = policy_logits.to(dtype) - retain_logits.detach().to(dtype)
    return sequence_reduce((difference.detach() * gap).sum(-1), rows, count, reduction)


def sequence_kl_margin(
    log_preferred: Tensor,
    log_dispreferred: Tensor,
    policy_logits: Tensor,
    retain_logits: Tensor,
    rows: Tensor,
    count: int,
    reduction: Reduction = "sum",
) -> Tensor:
    """Compute the margin as the published text states it: differences of sequence KL divergences.

    The slow and literal form, for explanation and for tests; equal to `margin`.

    Args:
        log_preferred: (N, V) log-probabilities.
        log_dispreferred: (N, V) log-probabilities.
        policy_logits: (N, V).
        retain_logits: (N, V).
        rows: (N,) int64 row of each position.
        count: number of rows of the batch.
        reduction: `sum` or `mean` over positions.

    Returns:
        (count,) margins in nats.

    Raises:
        InputError: when `reduction` is unknown.
    """
    dtype = working_dtype(log_preferred, policy_logits, retain_logits)
    policy = policy_logits.to(dtype).log_softmax(-1)
    reference = retain_logits.detach().to(dtype).log_softmax(-1)

    def sequence_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
        return sequence_reduce((log_p.exp() * (log_p - log_q)).sum(-1), rows, count, reduction)

    towards = sequence_kl(log_dispreferred, policy) - sequence_kl(log_preferred, policy)
    start = sequence_kl(log_dispreferred, reference) - sequence_kl(log_preferred, reference)
    return towards - start


def rewards(
    preferred_part: Tensor, dispreferred_part: Tensor, policy_logits: Tensor, retain_logits: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Compute the rewards R(preferred) and R(dispreferred) of each position.

    Args:
        preferred_part: (N, V) preferred - reference distribution (`pair_parts`).
        dispreferred_part: (N, V) dispreferred - reference distribution.
        policy_logits: (N, V).
        retain_logits: (N, V).
        beta: inverse temperature of the preference model, > 0.

    Returns:
        Two (N,) tensors; beta * u is the sum over positions of first minus second.
    """
    dtype = working_dtype(preferred_part, policy_logits, retain_logits)
    gap = policy_logits.to(dtype) - retain_logits.detach().to(dtype)
    return beta * (preferred_part * gap).sum(-1), beta * (dispreferred_part * gap).sum(-1)


def scale_factor(beta: float, scale: Scale = "2/beta") -> float:
    """Turn a scale's name into its number.

    Args:
        beta: inverse temperature, > 0.
        scale: `2/beta` (as NPO writes its loss) or `1` (as DPO does).

    Raises:
        InputError: when beta is not positive or the scale is unknown.
    """
    if not beta > 0:
        raise InputError(f"beta is {beta!r}; use a number > 0")
    if scale == "2/beta":
        return 2.0 / beta
    if scale == 1:
        return 1.0
    raise InputError(f"scale is {scale!r}; use '2/beta' or 1")


def dipo_loss(margin: Tensor, beta: float, scale: Scale = "2/beta") -> Tensor:
    """Compute the forget loss -scale * log sigmoid(beta * u) of each sequence.

    Args:
        margin: (count,) margins u.
        beta: inverse temperature, > 0.
        scale: `2/beta` or `1`.

    Returns:
        (count,) losses; scale * log 2 where the policy is the reference.

    Raises:
        InputError: when beta is not positive or the scale is unknown.
    """
    return -scale_factor(beta, scale) * logsigmoid(beta * margin)


def dipo_logit_gradient(
    margin: Tensor,
    difference: Tensor,
    rows: Tensor,
    beta: float,
    scale: Scale = "2/beta",
    reduction: Reduction = "sum",
) -> Tensor:
    """Compute the gradient of the summed forget loss on the policy logits in closed form.

    dL_f / dh_t = -scale * beta * sigmoid(-beta u) * (preferred_t - dispreferred_t), over the length for `mean`.

    Args:
        margin: (count,) margins u.
        difference: (N, V) preferred - dispreferred.
        rows: (N,) int64 row of each position.
        beta: inverse temperature, > 0.
        scale: `2/beta` or `1`.
        reduction: as the margin was reduced.

    Returns:
        (N, V).
    """
    weight = -scale_factor(beta, scale) * beta * torch.sigmoid(-beta * margin)
    if reduction == "mean":
        weight = weight / sequence_length(rows, len(margin)).clamp(min=1)
    return weight[rows].unsqueeze(-1) * difference
