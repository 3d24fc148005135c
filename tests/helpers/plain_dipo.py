"""Sequence margins, rewards and the closed-form gradient, from the package's functions of single positions."""

import torch
from torch import Tensor

from dipo_lightning.losses.chunking import sequence_length, sequence_reduce
from dipo_lightning.methods.dipo.loss import scale_factor, token_margins
from dipo_lightning.methods.dipo.pair import PairOptions, pair_parts


def pair_difference(logits: Tensor, options: PairOptions) -> Tensor:
    """Preferred minus dispreferred, (N, V)."""
    preferred, dispreferred = pair_parts(logits, options)
    return preferred - dispreferred


def margin(
    difference: Tensor, policy: Tensor, reference: Tensor, ids: Tensor, batch_size: int, reduction: str = "sum"
) -> Tensor:
    """(B,) margins of the sequences."""
    found = token_margins(difference, torch.zeros_like(difference), policy, reference)
    return sequence_reduce(found.margin, ids, batch_size, reduction)


def rewards(preferred: Tensor, dispreferred: Tensor, policy: Tensor, reference: Tensor, beta: float) -> list[Tensor]:
    """Both rewards of each position, (N,)."""
    found = token_margins(preferred, dispreferred, policy, reference)
    return [beta * reward for reward in found[1:]]


def dipo_logit_gradient(
    u: Tensor, difference: Tensor, ids: Tensor, beta: float, scale: str | int = "2/beta", reduction: str = "sum"
) -> Tensor:
    """-scale * beta * sigmoid(-beta u) * (preferred_t - dispreferred_t), over the length for `mean`: (N, V)."""
    weight = -scale_factor(beta, scale) * beta * torch.sigmoid(-beta * u)  # type: ignore[arg-type]
    if reduction == "mean":
        weight = weight / sequence_length(ids, len(u)).clamp(min=1)
    return weight[ids].unsqueeze(-1) * difference


def sequence_kl_margin(
    log_preferred: Tensor,
    log_dispreferred: Tensor,
    policy: Tensor,
    reference: Tensor,
    ids: Tensor,
    batch_size: int,
    reduction: str = "sum",
) -> Tensor:
    """The margin as the published text states it: differences of sequence KL divergences."""
    policy, reference = policy.log_softmax(-1), reference.detach().log_softmax(-1)

    def sequence_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
        return sequence_reduce((log_p.exp() * (log_p - log_q)).sum(-1), ids, batch_size, reduction)

    towards = sequence_kl(log_dispreferred, policy) - sequence_kl(log_preferred, policy)
    return towards - (sequence_kl(log_dispreferred, reference) - sequence_kl(log_preferred, reference))
