"""UNDIAL: distillation from the reference with the answer's token pushed down (arXiv 2402.10052)."""

from typing import Any

from torch import Tensor

from dipo_lightning.answers import Answers
from dipo_lightning.modules.unlearning import UnlearningModule
from dipo_lightning.objectives.undial import undial


class UNDIALModule(UnlearningModule):
    """Cross-entropy to the reference's distribution with ``strength`` taken off the answer token's logit.

    Args:
        pretrained: The model that must forget; also the reference.
        strength: What is taken off, in nats.
        **options: Those of `UnlearningModule`.
    """

    def __init__(self, pretrained: str, strength: float = 10.0, **options: Any) -> None:  # noqa: ANN401
        super().__init__(pretrained, **options)
        self.save_hyperparameters(ignore=["optimizer"])
        self.strength = strength

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean cross-entropy over the answer tokens."""
        reference = self.reference_logits(forget)
        return undial(forget.logits, reference, forget.labels, self.strength, forget.token_denominator)
