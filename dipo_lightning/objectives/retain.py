"""Retain losses: what keeps the model able while it forgets. Both are means over answer tokens only."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div

from dipo_lightning.objectives.pair import working_dtype
from dipo_lightning.objectives.sequences import token_mean


def retain_nll(nll: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Compute the mean token NLL on the retain answers.

    Args:
        nll: (N,) token NLL (`token_nll` or `chunked_nll`).
        denominator: global token count; None uses N.

    Returns:
        Scalar.
    """
    return token_mean(nll, denominator)


def retain_kl(policy_logits: Tensor, reference_logits: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Compute the mean KL(reference || policy) over the supervised positions of the retain answers.

    Args:
        policy_logits: (N, V) policy logits.
        reference_logits: (N, V) logits of the frozen reference at the same positions.
        denominator: global token count; None uses N.

    Returns:
        Scalar in nats; its gradient on the policy logits is (policy - reference) / denominator.
    """
    dtype = working_dtype(policy_logits, reference_logits)
    policy = policy_logits.to(dtype).log_softmax(-1)
    reference = reference_logits.detach().to(dtype).log_softmax(-1)
    return token_mean(kl_div(policy, reference, reduction="none", log_target=True).sum(-1), denominator)
