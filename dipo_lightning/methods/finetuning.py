"""Ordinary fine-tuning: makes the target (all rows) and the retain model (the honest answer)."""

from typing import Any

from torch import Tensor

from dipo_lightning.losses.likelihood import retain_nll
from dipo_lightning.methods.language_model import LanguageModelModule
from dipo_lightning.models.answers import compute_answers


class FineTuningModule(LanguageModelModule):
    """Minimises the mean NLL of the supervised tokens of the batch's ``train`` half."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the mean token NLL over the global batch."""
        assert self.policy is not None
        terms = compute_answers(
            self.policy,
            {"train": batch["train"]},
            lambda halves: {"loss": retain_nll(halves["train"].nll, halves["train"].token_denominator)},
            batch.get("denominators"),
        )
        self.remember(terms["loss"], batch, terms)
        self.log("loss", terms["loss"].detach(), prog_bar=True, logger=False)
        return terms["loss"]
