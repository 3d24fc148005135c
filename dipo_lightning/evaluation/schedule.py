"""Schedule of a callback: at the start, every few epochs or steps, at the end, in validation and in a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dipo_lightning.errors import check_arguments, check_numbers, options_of

Hook = Literal["on_train_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end"]


class StopRequested(SIGTERMException):
    """Exception for a stop signal (SIGTERM) during an evaluation, which ends the run as Lightning's exception does."""


class Savepoint(pl.Callback):
    """Base class of callbacks that save the state of a step before its evaluation, so that this can be interrupted."""

    def before_evaluation(self, trainer: pl.Trainer, hook: Hook) -> None:
        """Save the state of the step that the evaluation in ``hook`` will measure; collective."""

    @contextmanager
    def interruptible(self, trainer: pl.Trainer) -> Iterator[None]:
        """Let a stop signal raise `StopRequested` within a block."""
        yield

    def evaluation_interrupted(self, trainer: pl.Trainer, hook: Hook) -> None:
        """Save the step as it was before the evaluation, if it is not saved yet; the run then ends."""


@dataclass
class Schedule:
    """Moments of a fit at which a callback runs.

    Attributes:
        every_n_epochs: Run at the end of every n-th epoch; None for never.
        every_n_steps: Run after every n-th optimiser step; None for never.
        at_start: Run before the first step; a resumed run does not repeat it.
        at_end: Run after the last step, unless it has just run there.
    """

    every_n_epochs: int | None = 1
    every_n_steps: int | None = None
    at_start: bool = True
    at_end: bool = True


class Scheduled(pl.Callback):
    """Callback that runs by a schedule, at most once per step of a fit.

    Args:
        schedule: Moments of a run; None for the start, the end and every epoch.

    Attributes:
        last_step: Optimiser steps after which it ran last; None before.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__()
        check_arguments(self)
        name = f"{type(self).__name__}.schedule"
        self.schedule = Schedule() if schedule is None else options_of(name, Schedule, schedule)
        numbers = ("every_n_epochs", "every_n_steps")
        check_numbers(self, {f"schedule.{name}": getattr(self.schedule, name) for name in numbers})
        self.last_step: int | None = None

    def run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Run the callback once; collective."""
        raise TypeError(f"{type(self).__name__} must define run()")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate before the first step."""
        if self.schedule.at_start and trainer.global_step == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch, "on_train_start")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate after every n-th optimiser step; after the last one of an epoch when the epoch ends."""
        if self._due_by_steps(trainer) and batch_idx + 1 < trainer.num_training_batches:
            self._run_once(trainer, pl_module, trainer.current_epoch, "on_train_batch_end")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate after every n-th epoch; ``ModelCheckpoint`` and ``EarlyStopping`` come after this."""
        every = self.schedule.every_n_epochs
        by_epochs = bool(every) and (trainer.current_epoch + 1) % (every or 1) == 0
        if by_epochs or self._due_by_steps(trainer):
            self._run_once(trainer, pl_module, trainer.current_epoch + 1, "on_train_epoch_end")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final policy."""
        if self.schedule.at_end:
            self._run_once(trainer, pl_module, trainer.current_epoch, "on_train_end")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final policy, if that is not done yet."""
        self.settle(trainer, pl_module)

    def settle(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final policy if the last measurement is not of it; collective and idempotent.

        That is so if the run was interrupted in its last evaluation, or if a callback (weight averaging) changed the
        weights at the end of training.
        """
        if self.schedule.at_end and trainer.global_step and self.outdated(trainer, pl_module):
            self.last_step = None
            self._run_once(trainer, pl_module, trainer.current_epoch, "on_fit_end")

    def outdated(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Return whether the last measurement was made with other weights; collective."""
        return self.last_step != trainer.global_step

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in ``trainer.validate``; the validation loop inside ``fit`` is ignored."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.run(trainer, pl_module, trainer.current_epoch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in ``trainer.test``."""
        self.run(trainer, pl_module, trainer.current_epoch)

    def _due_by_steps(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step
        every = self.schedule.every_n_steps
        return bool(every) and step > 0 and step % (every or 1) == 0

    def _run_once(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int, hook: Hook) -> None:
        if self.last_step == trainer.global_step:
            return
        keepers = [callback for callback in trainer.callbacks if isinstance(callback, Savepoint)]  # type: ignore[attr-defined]
        for keeper in keepers:
            keeper.before_evaluation(trainer, hook)
        try:
            self.run(trainer, pl_module, epoch)
        except StopRequested:
            for keeper in keepers:
                keeper.evaluation_interrupted(trainer, hook)
            raise
        self.last_step = trainer.global_step


@contextmanager
def interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Let a stop signal end a block by raising `StopRequested`; the block must not have side effects."""
    keeper = next((callback for callback in trainer.callbacks if isinstance(callback, Savepoint)), None)  # type: ignore[attr-defined]
    if keeper is None or trainer.state.fn != TrainerFn.FITTING:
        yield
        return
    with keeper.interruptible(trainer):
        yield


def settle_evaluations(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Complete every scheduled callback of a run before its results are exported or shown; collective."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Scheduled):
            callback.settle(trainer, pl_module)
