"""SatImp: gradient ascent weighted by how little and how much each token matters (arXiv 2505.11953).

Saturation takes weight from tokens that are already unlikely, importance from tokens that are nearly certain, such as
those that grammar dictates. With p the token's probability the weight is p^beta1 (1 - p)^beta2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.losses.chunking import global_mean
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers


def satimp(nll: Tensor, beta1: float = 5.0, beta2: float = 1.0, denominator: float | Tensor | None = None) -> Tensor:
    """Compute -mean(p^beta1 (1 - p)^beta2 NLL), the weight taken as a constant.

    Args:
        nll: (N,) NLL of the answer tokens in nats.
        beta1: Exponent of saturation, >= 0; with `beta2` 0 the loss is WGA's.
        beta2: Exponent of importance, >= 0.
        denominator: Global token count; None is N.

    Raises:
        InputError: An exponent is negative.
    """
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not value >= 0:
            raise InputError(f"{name} is {value!r}; use a number >= 0")
    constant = nll.detach()
    weight = torch.exp(-beta1 * constant) * (-torch.expm1(-constant)) ** beta2
    return -global_mean(weight * nll, denominator)


class SatImpModule(UnlearningModule):
    """Gradient ascent on tokens that are neither unlikely nor certain yet.

    Source: arXiv 2505.11953; its exponents, and its weight of the retain term, a tenth of the forget term's.

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
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            if not value >= 0:
                raise InputError(f"model.{name} is {value}; it must be 0 or more.")
        self.beta1, self.beta2 = beta1, beta2

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return minus the weighted mean token NLL."""
        return satimp(forget.nll, self.beta1, self.beta2, forget.token_denominator)
