"""Ordinary fine-tuning, which makes the target model (all rows) and the retain model (without the forget set)."""

from typing import Any

from torch import Tensor

from dipo_lightning.methods.language_model import LanguageModelModule
from dipo_lightning.models.answers import compute_answers


class FineTuningModule(LanguageModelModule):
    """Fine-tuning: minimises the mean NLL of the supervised tokens of the batch's ``train`` part."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the mean token NLL over the global batch."""
        assert self.policy is not None
        terms = compute_answers(
            self.policy,
            {"train": batch["train"]},
            lambda answers: {"loss": answers["train"].mean_nll},
            batch.get("denominators"),
        )
        self.remember(terms["loss"], batch, terms)
        self.log("loss", terms["loss"].detach(), prog_bar=True, logger=False)
        return terms["loss"]
