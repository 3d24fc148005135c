"""UNDIAL: distil from the reference's own distribution with the label's logit pushed down. Source: arXiv 2402.10052.

UNDIAL: distillation from the reference with the answer's token pushed down (arXiv 2402.10052).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.losses.reductions import token_mean, working_dtype
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers


def undial_target(retain_logits: Tensor, labels: Tensor, strength: float = 10.0) -> Tensor:
    """Build the teacher softmax(h_ref - strength * onehot(label)).

    Args:
        retain_logits: (N, V) logits of the frozen reference.
        labels: (N,) int64 tokens to forget.
        strength: what is taken off the label's logit, in nats, >= 0.

    Returns:
        (N, V) probabilities, float32 (float64 for float64 logits), without gradient.

    Raises:
        InputError: when the strength is negative.
    """
    if not strength >= 0:
        raise InputError(f"strength is {strength!r}; use a number >= 0")
    logits = retain_logits.detach().to(working_dtype(retain_logits))
    places = labels.unsqueeze(-1)
    return logits.scatter(-1, places, logits.gather(-1, places) - strength).softmax(-1)


def undial(
    policy_logits: Tensor,
    retain_logits: Tensor,
    labels: Tensor,
    strength: float = 10.0,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Compute the mean cross-entropy between teacher and policy over the answer tokens.

    Args:
        policy_logits: (N, V) policy logits at the answer positions.
        retain_logits: (N, V) reference logits at the same positions.
        labels: (N,) int64 tokens to forget.
        strength: what is taken off the label's logit, in nats, >= 0.
        denominator: global token count; None uses N.

    Returns:
        Scalar.

    Raises:
        InputError: when the strength is negative.
    """
    target = undial_target(retain_logits, labels, strength)
    policy = policy_logits.to(working_dtype(policy_logits)).log_softmax(-1)
    return token_mean(-(target * policy).sum(-1), denominator)


class UNDIALModule(UnlearningModule):
    """Cross-entropy to the reference's distribution with ``strength`` taken off the answer token's logit.

    Args:
        pretrained: The model that must forget; also the reference.
        strength: What is taken off, in nats.
        **options: Those of `UnlearningModule`.
    """

    def __init__(self, pretrained: str, strength: float = 10.0, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.save_hyperparameters(ignore=["optimizer"])
        self.strength = strength

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean cross-entropy over the answer tokens."""
        reference = self.retain_logits(forget)
        return undial(forget.logits, reference, forget.labels, self.strength, forget.token_denominator)
