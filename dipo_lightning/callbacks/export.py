"""Export of the trained model as a Hugging Face folder that ``AutoModelForCausalLM.from_pretrained`` loads."""

from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from dipo_lightning.callbacks.run_record import CHECKPOINTS, read_record, write_record
from dipo_lightning.data.rows import fingerprints
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.run_folder import is_trial, run_folder
from dipo_lightning.evaluation.schedule import settle_evaluations
from dipo_lightning.models.export import save_model
from dipo_lightning.report.card import CardFacts, model_card


class ExportModel(Callback):
    """Export of the policy, and of the data module's tokenizer, when training ends.

    Args:
        folder: Where to; inside the run's log folder if relative and ``inside_run``. It must be absent or empty.
        adapters: For LoRA: ``merged`` into the weights, or ``separate`` (a peft folder).
        inside_run: Take a relative ``folder`` from the run's log folder, so that no run overwrites another's.
    """

    def __init__(
        self, folder: str = "model", adapters: Literal["merged", "separate"] = "merged", inside_run: bool = True
    ) -> None:
        self.folder, self.adapters, self.inside_run = folder, adapters, inside_run
        self.path: Path | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a folder that holds something else than this run's own export, before the model is loaded."""
        root = run_folder(trainer) if self.inside_run else Path()
        self.path = root / self.folder
        if stage != TrainerFn.FITTING or is_trial(trainer) or not trainer.is_global_zero:
            return
        if self.path.exists() and any(self.path.iterdir()):
            record = read_record(run_folder(trainer) / CHECKPOINTS) or {}
            if str(self.path.resolve()) not in record.get("exports", []):
                raise InputError(
                    f"{self.path} is not empty; ExportModel would overwrite it. Name another folder or remove it."
                )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder; every rank takes part in gathering the weights, rank 0 writes."""
        assert self.path is not None
        if is_trial(trainer):
            return
        settle_evaluations(trainer, pl_module)  # the card tells what the exported weights measured
        policy: nn.Module = pl_module.policy  # type: ignore[assignment]
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        write, run = trainer.is_global_zero, run_folder(trainer)
        card = self._card(trainer, pl_module, run) if write else None
        if write:
            self._note(run / CHECKPOINTS)
        save_model(policy, self.path, tokenizer, merge=self.adapters == "merged", write=write, card=card)
        trainer.strategy.barrier()
        if write:
            print(f"The model is in {self.path}")

    def _note(self, folder: Path) -> None:
        """Record whose export this is: a run that is cut off after it, and resumed, may write it again."""
        assert self.path is not None
        if (record := read_record(folder)) is not None:
            write_record(folder, exports=sorted({*record.get("exports", []), str(self.path.resolve())}))

    def _card(self, trainer: pl.Trainer, pl_module: pl.LightningModule, run: Path) -> str:
        """Write the model card from the module's settings, the data and the evaluations of this run."""
        assert self.path is not None
        adapters = self.adapters == "separate" and hasattr(pl_module.policy, "merge_and_unload")
        facts = CardFacts(
            name=self.path.resolve().name,
            base=str(getattr(pl_module, "pretrained", "a language model")),
            method=type(pl_module).__name__,
            settings=dict(pl_module.hparams),
            data=fingerprints(getattr(trainer, "datamodule", None)),
            run=run,
            step=trainer.global_step,
            adapters=adapters,
        )
        return model_card(facts)
