"""Methods that push the answer's own likelihood down: GradAscent, GradDiff, KL, WGA and CE-U."""

from typing import Any, ClassVar, Literal

from torch import Tensor

from dipo_lightning.answers import Answers
from dipo_lightning.modules.unlearning import UnlearningModule
from dipo_lightning.objectives.ascent import ce_u, grad_ascent, wga


class GradDiffModule(UnlearningModule):
    """Gradient ascent on the forget answers and descent on the retain answers. Source: TOFU, arXiv 2401.06121."""

    needs_reference: ClassVar[bool] = False

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return minus the mean token NLL."""
        return grad_ascent(forget.nll, forget.token_denominator)


class GradAscentModule(GradDiffModule):
    """Gradient ascent alone, without a retain term. Source: TOFU, arXiv 2401.06121.

    Args:
        pretrained: The model that must forget.
        retain_loss: ``none``; with another it is no longer this method.
        **options: Those of `UnlearningModule`.
    """

    def __init__(
        self,
        pretrained: str,
        retain_loss: Literal["nll", "kl", "none"] = "none",
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(pretrained, retain_loss=retain_loss, **options)


class KLModule(GradDiffModule):
    """Gradient ascent, held by KL(reference || policy) on the retain answers. Source: TOFU, arXiv 2401.06121.

    Args:
        pretrained: The model that must forget; also the reference on the retain answers.
        retain_loss: ``kl``; with another it is no longer this method.
        **options: Those of `UnlearningModule`.
    """

    def __init__(
        self,
        pretrained: str,
        retain_loss: Literal["nll", "kl", "none"] = "kl",
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(pretrained, retain_loss=retain_loss, **options)


class WGAModule(UnlearningModule):
    """Gradient ascent weighted by each token's probability. Source: arXiv 2502.19301.

    Args:
        pretrained: The model that must forget.
        beta: Exponent of the weight ``p ** beta``.
        **options: Those of `UnlearningModule`.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(self, pretrained: str, beta: float = 1.0, **options: Any) -> None:  # noqa: ANN401
        super().__init__(pretrained, **options)
        self.save_hyperparameters(ignore=["optimizer"])
        self.beta = beta

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return minus the weighted mean token NLL."""
        return wga(forget.nll, self.beta, forget.token_denominator)


class CEUModule(UnlearningModule):
    """Cross-entropy to the policy's own distribution with the answer's token taken out. Source: arXiv 2503.01224."""

    needs_reference: ClassVar[bool] = False

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean cross-entropy."""
        return ce_u(forget.logits, forget.labels, forget.token_denominator)
