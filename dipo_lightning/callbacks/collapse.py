"""Stops a run whose model has lost what it should keep: hours of training a collapsed model help nobody."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dipo_lightning.callbacks.evaluation import Evaluation
from dipo_lightning.errors import InputError, RunError


class StopOnCollapse(pl.Callback):
    """Ends the run with an error when a utility falls below a share of its first value, or below a number.

    The error names the step, the terms and rows of the last batch and the last good checkpoint: the collapsed model is
    not saved over it. Write it behind the evaluation that logs the utility.

    Args:
        monitor: Name of the metric, as the evaluation logs it; more is better.
        share: Smallest share of its first value (of the model before unlearning).
        minimum: Smallest value, instead of or besides the share.
    """

    def __init__(
        self, monitor: str = "tofu/model_utility", share: float | None = None, minimum: float | None = None
    ) -> None:
        super().__init__()
        if share is None and minimum is None:
            raise InputError("StopOnCollapse needs share (of the first value) or minimum.")
        if share is not None and not 0 < share <= 1:
            raise InputError(f"StopOnCollapse.share is {share}; it must be in (0, 1].")
        if minimum is not None and not math.isfinite(minimum):
            raise InputError(f"StopOnCollapse.minimum is {minimum}; it must be a finite number.")
        self.monitor, self.share, self.minimum = monitor, share, minimum
        self.first: float | None = None

    @property
    def state_key(self) -> str:
        """Let rules about several metrics stand in one run."""
        return self._generate_state_key(monitor=self.monitor)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse to stand before the evaluation that it waits for: the collapsed model would be saved first."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks[callbacks.index(self) :]:
            if isinstance(callback, Evaluation) and self.monitor.startswith(f"{callback.name}/"):
                raise InputError(
                    f"StopOnCollapse watches {self.monitor}, but stands before {type(callback).__name__} in "
                    "trainer.callbacks; write it behind."
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the value before the first step."""
        self._check(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Look after an evaluation at a step."""
        self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look after an evaluation at an epoch."""
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise InputError(f"StopOnCollapse.monitor is {self.monitor!r}, which nothing has logged. Logged: {known}.")
        self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if self.first is None:
            self.first = value
        floors = [] if self.minimum is None else [(self.minimum, "StopOnCollapse.minimum")]
        if self.share is not None:
            floors.append((self.share * self.first, f"{self.share:g} of its first value {self.first:.4g}"))
        for floor, name in floors:
            if not value >= floor:  # a value that is no number is no utility
                what = f"The model has collapsed: {self.monitor} is {value:.4g}, below {floor:.4g} ({name})"
                situation = getattr(pl_module, "situation", None)  # any LightningModule may be evaluated
                raise RunError(situation(what) if situation else f"{what}, at step {trainer.global_step}.")

    def state_dict(self) -> dict[str, Any]:
        """Return the first value, which a resumed run does not measure again."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the first value of the interrupted run."""
        self.first = state_dict["first"]
