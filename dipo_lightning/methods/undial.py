"""UNDIAL: distillation from the reference's distribution with the answer token's logit lowered (arXiv 2402.10052)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dipo_lightning.errors import check_numbers
from dipo_lightning.losses.chunking import global_mean, working_dtype
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers, over_logits


def undial_target(reference_logits: Tensor, labels: Tensor, strength: float = 10.0) -> Tensor:
    """Build the teacher softmax(h_ref - strength * onehot(label)).

    Args:
        reference_logits: (N, V) logits of the frozen reference.
        labels: (N,) int64 tokens to forget.
        strength: Nats subtracted from the label's logit, >= 0.

    Returns:
        (N, V) probabilities, float32 (float64 for float64 logits), without gradient.
    """
    logits = reference_logits.detach().to(working_dtype(reference_logits))
    places = labels.unsqueeze(-1)
    return logits.scatter(-1, places, logits.gather(-1, places) - strength).softmax(-1)


def undial(policy_logits: Tensor, reference_logits: Tensor, labels: Tensor, strength: float = 10.0) -> Tensor:
    """Compute the cross-entropy (N,) between teacher and policy; arguments as for `undial_target`."""
    target = undial_target(reference_logits, labels, strength)
    return -(target * policy_logits.to(working_dtype(policy_logits)).log_softmax(-1)).sum(-1)


class UNDIALModule(UnlearningModule):
    """Cross-entropy to the reference's distribution with ``strength`` subtracted from the answer token's logit.

    Args:
        pretrained: The model that must forget; also the reference.
        strength: Nats to subtract.
        lambda_: Weight of the retain term; 0, as in the source, trains on the forget rows alone.
        **options: Those of `UnlearningModule`.
    """

    def __init__(self, pretrained: str, strength: float = 10.0, lambda_: float = 0.0, **options: Any) -> None:
        super().__init__(pretrained, lambda_=lambda_, **options)
        check_numbers("model", {"strength": strength}, least=0)
        self.strength = strength

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean cross-entropy over the answer tokens."""

        def cross_entropy(positions: Tensor, policy: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
            return (undial(policy, reference, forget.labels[positions], self.strength),)

        (losses,) = over_logits(cross_entropy, forget, self.reference_answers(forget))
        return global_mean(losses, forget.token_denominator)
