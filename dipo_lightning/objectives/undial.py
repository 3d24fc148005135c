"""UNDIAL: distil from the reference's own distribution with the label's logit pushed down. Source: arXiv 2402.10052."""

from __future__ import annotations

from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.objectives.pair import working_dtype
from dipo_lightning.objectives.sequences import token_mean


def undial_target(reference_logits: Tensor, labels: Tensor, strength: float = 10.0) -> Tensor:
    """Build the teacher softmax(h_ref - strength * onehot(label)).

    Args:
        reference_logits: (N, V) logits of the frozen reference.
        labels: (N,) int64 tokens to forget.
        strength: what is taken off the label's logit, in nats, >= 0.

    Returns:
        (N, V) probabilities, float32 (float64 for float64 logits), without gradient.

    Raises:
        InputError: when the strength is negative.
    """
    if not strength >= 0:
        raise InputError(f"strength is {strength!r}; use a number >= 0")
    logits = reference_logits.detach().to(working_dtype(reference_logits))
    places = labels.unsqueeze(-1)
    return logits.scatter(-1, places, logits.gather(-1, places) - strength).softmax(-1)


def undial(
    policy_logits: Tensor,
    reference_logits: Tensor,
    labels: Tensor,
    strength: float = 10.0,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Compute the mean cross-entropy between teacher and policy over the answer tokens.

    Args:
        policy_logits: (N, V) policy logits at the answer positions.
        reference_logits: (N, V) reference logits at the same positions.
        labels: (N,) int64 tokens to forget.
        strength: what is taken off the label's logit, in nats, >= 0.
        denominator: global token count; None uses N.

    Returns:
        Scalar.

    Raises:
        InputError: when the strength is negative.
    """
    target = undial_target(reference_logits, labels, strength)
    policy = policy_logits.to(working_dtype(policy_logits)).log_softmax(-1)
    return token_mean(-(target * policy).sum(-1), denominator)
