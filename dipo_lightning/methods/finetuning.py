"""Ordinary fine-tuning, which makes the target model (all rows) and the retain model (without the forget set)."""

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.methods.language_model import LanguageModelModule
from dipo_lightning.models.answers import compute_answers


class FineTuningModule(LanguageModelModule):
    """Fine-tuning: minimises the mean NLL of the supervised tokens of the batch's ``train`` part."""

    def setup(self, stage: str) -> None:
        """Refuse the data module of unlearning, whose batches have no ``train`` part, before the model is loaded."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        own = type(self).training_step is not FineTuningModule.training_step
        unlearns = (
            isinstance(data, UnlearningDataModule) and type(data).training_set is UnlearningDataModule.training_set
        )
        if stage == TrainerFn.FITTING and unlearns and not own:
            raise InputError(
                f"{type(self).__name__} trains on the rows of data.train, but {type(data).__name__} has data.forget. "
                "Use a data module for fine-tuning, such as --data FineTuningDataModule, or a method that unlearns."
            )

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
