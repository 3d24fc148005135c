"""SatImp (arXiv 2505.11953): gradient ascent weighted by saturation and importance."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dipo_lightning.errors import check_numbers
from dipo_lightning.losses.likelihood import weighted_ascent
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers


class SatImpModule(UnlearningModule):
    """Gradient ascent on tokens that are neither unlikely nor certain yet.

    Source: arXiv 2505.11953, with its exponents and its weight of the retain term, a tenth of the forget term's.

    Args:
        pretrained: The model that must forget.
        beta1: Exponent of saturation, the weight ``p ** beta1``.
        beta2: Exponent of importance, the weight ``(1 - p) ** beta2``.
        lambda_: Weight of the retain term.
        **options: Those of `UnlearningModule`.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(
        self, pretrained: str, beta1: float = 5.0, beta2: float = 1.0, lambda_: float = 0.1, **options: Any
    ) -> None:
        super().__init__(pretrained, lambda_=lambda_, **options)
        check_numbers("model", {"beta1": beta1, "beta2": beta2}, least=0)
        self.beta1, self.beta2 = beta1, beta2

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return minus the weighted mean token NLL."""
        return weighted_ascent(forget.nll, self.beta1, self.beta2, forget.token_denominator)
