"""When a callback runs: at the start, every few epochs or steps, at the end, in validation and in a test."""

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dipo_lightning.evaluation.rows import check_numbers


@dataclass
class Schedule:
    """Moments of a fit at which a callback runs.

    Attributes:
        every_n_epochs: At the end of every n-th epoch; None for not at epochs.
        every_n_steps: After every n-th optimiser step; None for not at steps.
        at_start: Before the first step; not on a resume.
        at_end: After the last step, unless it has just run.
    """

    every_n_epochs: int | None = 1
    every_n_steps: int | None = None
    at_start: bool = True
    at_end: bool = True


class Scheduled(pl.Callback):
    """Calls `run` when its schedule says so, and never twice at one step of a fit.

    Args:
        schedule: When; None for the start, the end and every epoch.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.schedule = schedule or Schedule()
        numbers = ("every_n_epochs", "every_n_steps")
        check_numbers(self, {f"schedule.{name}": getattr(self.schedule, name) for name in numbers})
        self._last_step: int | None = None

    def run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Do what is due; collective."""
        raise TypeError(f"{type(self).__name__} must define run()")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate before the first step."""
        if self.schedule.at_start and trainer.global_step == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Evaluate after every n-th optimiser step."""
        every = self.schedule.every_n_steps
        if every and trainer.global_step > 0 and trainer.global_step % every == 0:
            ended = batch_idx + 1 >= trainer.num_training_batches  # the epoch: one evaluation serves for both
            self._run_once(trainer, pl_module, trainer.current_epoch + ended)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate after every n-th epoch; ``ModelCheckpoint`` and ``EarlyStopping`` come after this."""
        every = self.schedule.every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final policy."""
        if self.schedule.at_end:
            self._run_once(trainer, pl_module, trainer.current_epoch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in ``trainer.validate``; the validation loop inside ``fit`` isn't one of ours."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.run(trainer, pl_module, trainer.current_epoch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in ``trainer.test``."""
        self.run(trainer, pl_module, trainer.current_epoch)

    def _run_once(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        if self._last_step != trainer.global_step:
            self._last_step = trainer.global_step
            self.run(trainer, pl_module, epoch)
