"""PDU: forgetting by flat logits under a limit on the retain loss, by primal-dual steps (arXiv 2506.05314).

The problem is min L_forget subject to L_retain <= epsilon. Its Lagrangian L_forget + mu (L_retain - epsilon) is
minimised over the weights by the optimiser, and maximised over mu >= 0 by one ascent step per optimiser step:

    mu <- max(0, mu + dual_step (L_retain - epsilon))

While the retain loss is above the limit, mu grows and with it the weight of the retain term; below the limit mu falls
and forgetting dominates. The published code takes the logits one position too late, after each answer token; here they
are the logits that predict the token.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.losses.chunking import global_mean, working_dtype
from dipo_lightning.methods.language_model import mean_terms
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers, over_logits

_NO_RETAIN = "PDUModule forgets under a limit on the retain loss, and there are no retain rows; give data.retain."


def logit_margin(logits: Tensor) -> Tensor:
    """Compute the squared distance of the largest logit from the mean logit: 0 where all tokens are equally likely.

    Args:
        logits: (N, V).

    Returns:
        (N,) float32 (float64 for float64 logits).
    """
    logits = logits.to(working_dtype(logits))
    return (logits.amax(-1) - logits.mean(-1)).square()


def dual_ascent(dual: float, retain: float, limit: float, step: float) -> float:
    """Take one step of projected ascent on the multiplier of ``retain <= limit``."""
    return max(0.0, dual + step * (retain - limit))


class PDUModule(UnlearningModule):
    """Flattened logits on the forget answers, with a retain weight that is learned during training.

    The forget loss is the mean of `logit_margin`, which is in the tens to hundreds, so the multiplier starts high.
    Needs retain rows. Source: arXiv 2506.05314, with its settings for TOFU.

    Args:
        pretrained: The model that must forget.
        epsilon: Limit on the retain loss in nats per token; somewhat above the target's own retain loss.
        dual_step: Step size of the multiplier; 0 keeps it at ``lambda_``.
        dual_warmup_epochs: Epochs before the multiplier's first step.
        lambda_: Initial multiplier.
        **options: Those of `UnlearningModule`; with ``retain_loss: kl`` the limit is on that divergence.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(
        self,
        pretrained: str,
        epsilon: float = 0.3,
        dual_step: float = 5.0,
        dual_warmup_epochs: int = 5,
        lambda_: float = 100.0,
        **options: Any,
    ) -> None:
        super().__init__(pretrained, lambda_=lambda_, **options)
        sizes = {"epsilon": epsilon, "dual_step": dual_step, "dual_warmup_epochs": dual_warmup_epochs}
        check_numbers("model", sizes, least=0)
        if self.retain_loss_name == "none":
            raise InputError("model.retain_loss is none; PDU forgets under a limit on it. Use nll or kl.")
        self.epsilon, self.dual_step, self.dual_warmup_epochs = epsilon, dual_step, dual_warmup_epochs
        self.dual = lambda_

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean squared logit margin."""
        (margins,) = over_logits(lambda _, logits: (logit_margin(logits),), forget)
        return global_mean(margins, forget.token_denominator)

    def setup(self, stage: str) -> None:
        """Refuse a data module without retain rows, before the model is loaded."""
        super().setup(stage)
        if stage == TrainerFn.FITTING and not self._has_retain_rows:
            raise InputError(_NO_RETAIN)

    def objective(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the Lagrangian for the multiplier of this step."""
        if "retain" not in terms:
            raise InputError(_NO_RETAIN)
        return self.gamma * terms["forget"] + self.dual * (terms["retain"] - self.epsilon)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the multiplier by the retain loss of the global batch, the same on every process."""
        super().on_before_optimizer_step(optimizer)
        retain = mean_terms(self._batches, self.trainer.accumulate_grad_batches).get("retain")
        if retain is None:  # an overridden `training_step` has skipped the step
            return
        if self.trainer.world_size > 1:
            retain = self.trainer.strategy.reduce(retain, reduce_op="mean")
        if self.logs_are_due:
            self.log("train/dual", self.dual)
        if self.trainer.global_step == 0 and float(retain) > self.epsilon:
            rank_zero_warn(
                f"The retain loss is {float(retain):.3g} before the first step, above model.epsilon ({self.epsilon}): "
                "the limit is broken from the start. Set model.epsilon somewhat above it.",
                category=UserWarning,
            )
        if self.trainer.current_epoch >= self.dual_warmup_epochs:
            self.dual = dual_ascent(self.dual, float(retain), self.epsilon, self.dual_step)

    def _skips(self, part: str) -> bool:
        return False  # even while the multiplier is 0: the retain loss decides when it must grow

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the multiplier with the rest."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["dual"] = self.dual

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the multiplier with the rest."""
        super().on_load_checkpoint(checkpoint)
        self.dual = checkpoint.get("dual", self.dual)
