"""The DiPO forget loss on logits.

With u the margin, a sum over the answer positions t of a sequence:

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

so u is the sum over t of (R(preferred) - R(dispreferred)) / beta. Sources: TDPO, arXiv 2404.11999, for the reward;
arXiv 2510.04773 for the method, whose full text was not available, so this is a reconstruction.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from dipo_lightning.errors import InputError, check_positive
from dipo_lightning.losses.chunking import working_dtype

Scale = Literal["2/beta", 1]


class TokenMargins(NamedTuple):
    """Margins of single positions, and the two rewards whose difference each margin is.

    Attributes:
        margin: (N,) with gradient.
        preferred: (N,) R(preferred) / beta; None if it was not requested.
        dispreferred: (N,) R(dispreferred) / beta, so that margin = preferred - dispreferred; None likewise.
    """

    margin: Tensor
    preferred: Tensor | None = None
    dispreferred: Tensor | None = None


def token_margins(
    preferred_part: Tensor, dispreferred_part: Tensor, policy_logits: Tensor, reference_logits: Tensor
) -> TokenMargins:
    """Compute the margin and both rewards over beta of each position.

    Args:
        preferred_part: (N, V) preferred - reference distribution, without gradient.
        dispreferred_part: (N, V) dispreferred - reference distribution, without gradient.
        policy_logits: (N, V); the gradient of the margin on them is preferred - dispreferred.
        reference_logits: (N, V).
    """
    dtype = working_dtype(preferred_part, policy_logits, reference_logits)
    gap = policy_logits.to(dtype) - reference_logits.detach().to(dtype)
    preferred, dispreferred = (preferred_part * gap).sum(-1), (dispreferred_part * gap).sum(-1)
    return TokenMargins(preferred - dispreferred, preferred, dispreferred)


def scale_factor(beta: float, scale: Scale) -> float:
    """Return the factor of the loss.

    Args:
        beta: Inverse temperature, above 0.
        scale: `2/beta` (as NPO writes its loss) or `1` (as DPO does).

    Raises:
        InputError: Beta is not above 0, or the scale is unknown.
    """
    check_positive("", {"beta": beta})
    if scale == "2/beta":
        return 2.0 / beta
    if scale == 1:
        return 1.0
    raise InputError(f"scale is {scale!r}; use '2/beta' or 1")


def dipo_loss(margin: Tensor, beta: float, scale: Scale = "2/beta") -> Tensor:
    """Compute the forget loss -scale * log sigmoid(beta * u) of each sequence.

    Args:
        margin: (B,) margins u.
        beta: Inverse temperature, above 0.
        scale: `2/beta` or `1`.

    Returns:
        (B,) losses; scale * log 2 if the policy is the reference.

    Raises:
        InputError: Beta is not above 0, or the scale is unknown.
    """
    return -scale_factor(beta, scale) * logsigmoid(beta * margin)
