"""Preference methods on whole answers: NPO, SimNPO, and DPO with an "I don't know" answer.

The losses take the NLL of sequences, never raw logits, and return one loss per sequence. beta is positive throughout.
"""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.functional import logsigmoid

from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError, check_positive
from dipo_lightning.losses.chunking import global_mean
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers

_NO_ALTERNATIVES = "{} needs alternative answers; set data.alternatives."


def _preference(gap: Tensor, beta: float) -> Tensor:
    """Compute -(2 / beta) log sigmoid(beta * gap)."""
    check_positive("", {"beta": beta})
    return -(2.0 / beta) * logsigmoid(beta * gap)


def npo(nll: Tensor, reference_nll: Tensor, beta: float = 0.1) -> Tensor:
    """Negative preference optimization, (B,) losses. Source: arXiv 2404.05868.

    -(2 / beta) log sigmoid(beta (l - l_ref)), with l the answer's summed NLL. As beta -> 0 its gradient becomes that of
    gradient ascent on l.

    Args:
        nll: (B,) summed NLL of the forget answers under the policy.
        reference_nll: (B,) the same under the frozen reference.
        beta: Inverse temperature, above 0.
    """
    return _preference(nll - reference_nll.detach(), beta)


def simnpo(nll: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """NPO without a reference, normalised by length, (B,) losses. Source: arXiv 2410.07163.

    -(2 / beta) log sigmoid(beta (l - delta)), with l the answer's mean token NLL.

    Args:
        nll: (B,) mean token NLL of the forget answers under the policy.
        beta: Inverse temperature, above 0.
        delta: Reward margin in nats per token.
    """
    return _preference(nll - delta, beta)


def dpo(
    preferred_nll: Tensor,
    preferred_reference_nll: Tensor,
    dispreferred_nll: Tensor,
    dispreferred_reference_nll: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Direct preference optimization between two answers, as TOFU's IdkDPO uses it. Source: arXiv 2401.06121.

    -(2 / beta) log sigmoid(beta [(l_ref,w - l_w) - (l_ref,l - l_l)]), summed NLLs.

    Args:
        preferred_nll: (B,) summed NLL of the preferred answer (an "I don't know" line) under the policy.
        preferred_reference_nll: (B,) the same under the reference.
        dispreferred_nll: (B,) summed NLL of the answer to forget under the policy.
        dispreferred_reference_nll: (B,) the same under the reference.
        beta: Inverse temperature, above 0.
    """
    gain = preferred_reference_nll.detach() - preferred_nll
    loss = dispreferred_reference_nll.detach() - dispreferred_nll
    return _preference(gain - loss, beta)


class NPOModule(UnlearningModule):
    """Negative preference optimization: the answer is dispreferred. Source: arXiv 2404.05868.

    Args:
        pretrained: The model that must forget; also the reference.
        beta: Inverse temperature.
        **options: Those of `UnlearningModule`.
    """

    def __init__(self, pretrained: str, beta: float = 0.1, **options: Any) -> None:
        super().__init__(pretrained, **options)
        check_positive("model", {"beta": beta})
        self.beta = beta

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean loss of the sequences."""
        losses = npo(forget.sequence_nll(), self.reference_answers(forget).sequence_nll(), self.beta)
        return global_mean(losses, forget.sequence_denominator)


class DPOModule(NPOModule):
    """Direct preference optimization between the answer and an alternative, the batch's ``alternative`` part.

    With "I don't know" lines as alternatives (``data.alternatives``) this is TOFU's IdkDPO. Source: arXiv 2401.06121.
    """

    def setup(self, stage: str) -> None:
        """Refuse a data module of this package that has no alternatives, before the model is loaded."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage == TrainerFn.FITTING and isinstance(data, UnlearningDataModule):
            self.check_alternatives(data)

    def check_alternatives(self, data: UnlearningDataModule) -> None:
        """Raise an `InputError` if the data module has no alternatives."""
        if data.alternatives is None:
            raise InputError(_NO_ALTERNATIVES.format(type(self).__name__))

    @property
    def reference_parts(self) -> list[str]:
        """Parts of a batch that need the reference: the base class's, and the alternatives."""
        return [*super().reference_parts, "alternative"]

    def parts(self, batch: dict[str, Any]) -> list[str]:
        """Add the alternative answers to the forward."""
        if "alternative" not in batch:
            raise InputError(_NO_ALTERNATIVES.format(type(self).__name__))
        return [*super().parts(batch), "alternative"]

    def forget_terms(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the loss of preferring the alternative to the answer."""
        forget, alternative = answers["forget"], answers["alternative"]
        losses = dpo(
            alternative.sequence_nll(),
            self.reference_answers(alternative).sequence_nll(),
            forget.sequence_nll(),
            self.reference_answers(forget).sequence_nll(),
            self.beta,
        )
        return {"forget": global_mean(losses, forget.sequence_denominator)}


class IdkDPOModule(DPOModule):
    """`DPOModule` under the name the field uses when the alternatives are "I don't know" lines."""


class SimNPOModule(UnlearningModule):
    """NPO without a reference, on the mean token NLL. Source: arXiv 2410.07163.

    Args:
        pretrained: The model that must forget.
        beta: Inverse temperature.
        delta: Reward margin in nats per token.
        gamma: Weight of the forget term.
        **options: Those of `UnlearningModule`.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(
        self, pretrained: str, beta: float = 4.5, delta: float = 0.0, gamma: float = 0.125, **options: Any
    ) -> None:
        super().__init__(pretrained, gamma=gamma, **options)
        check_positive("model", {"beta": beta})
        self.beta, self.delta = beta, delta

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean loss of the sequences."""
        losses = simnpo(forget.sequence_nll("mean"), self.beta, self.delta)
        return global_mean(losses, forget.sequence_denominator)
