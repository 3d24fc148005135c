"""Stops at the first epoch whose metric has reached what was asked for: MUSE's rule, for any metric."""

import math
import sys
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.callbacks.evaluation import Evaluation
from dipo_lightning.errors import InputError
from dipo_lightning.metrics.logs import read_log


class StopAtThreshold(EarlyStopping):
    """Ends training after the first epoch whose metric is at or below (``min``) or above (``max``) a threshold.

    Lightning's EarlyStopping without its patience, and with the threshold itself as reached. MUSE takes the first
    epoch whose forget KnowMem is at or below the retrained model's. A ``ModelCheckpoint`` that saves each epoch has
    saved that one when training ends, as its last.

    Args:
        monitor: Name of the metric, as the evaluation logs it.
        threshold: The value to reach.
        reference_log: Instead of it, this package's evaluation log of the retrained model, whose aggregate of that
            name is the threshold.
        mode: ``min`` for a metric that must fall to the threshold, ``max`` for one that must rise to it.
        verbose: Say at each epoch how far it is.
    """

    def __init__(
        self,
        monitor: str = "muse/knowmem_forget",
        threshold: float | None = None,
        reference_log: str | None = None,
        mode: Literal["min", "max"] = "min",
        verbose: bool = False,
    ) -> None:
        if (threshold is None) == (reference_log is None):
            raise InputError("StopAtThreshold needs one of threshold and reference_log (the retrained model's log).")
        if mode not in ("min", "max"):
            raise InputError(f"StopAtThreshold.mode is {mode!r}; it is min or max.")
        if threshold is None:
            assert reference_log is not None
            threshold = threshold_from_log(reference_log, monitor)
        if not math.isfinite(threshold):
            raise InputError(f"StopAtThreshold.threshold is {threshold}; it must be a finite number.")
        super().__init__(
            monitor=monitor,
            mode=mode,
            patience=sys.maxsize,
            stopping_threshold=just_past(threshold, mode),
            check_on_train_epoch_end=True,
            check_finite=False,
            verbose=verbose,
        )
        self.threshold = threshold

    @property
    def state_key(self) -> str:
        """Let rules on several metrics stand in one run."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse to stand before the evaluation that it waits for: it would always be an epoch late."""
        super().setup(trainer, pl_module, stage)
        if stage == TrainerFn.FITTING:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED  # what a checkpoint says comes after this
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks[callbacks.index(self) :]:
            if isinstance(callback, Evaluation) and self.monitor.startswith(f"{callback.name}/"):
                raise InputError(
                    f"StopAtThreshold watches {self.monitor}, but stands before {type(callback).__name__} in "
                    "trainer.callbacks; write it behind."
                )

    @property
    def reached(self) -> bool:
        """Whether the threshold has been reached, in this process or before an interruption."""
        return self.stopping_reason == EarlyStoppingReason.STOPPING_THRESHOLD

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train no further where the checkpoint is of the epoch that reached it: Lightning would."""
        trainer.should_stop = trainer.should_stop or self.reached

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop where the metric is there, and has reached the threshold."""
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise InputError(f"StopAtThreshold.monitor is {self.monitor!r}, which nothing has logged. Logged: {known}.")
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so where it was never reached."""
        if not self.reached:
            value = trainer.callback_metrics.get(self.monitor)
            now = "never logged" if value is None else f"now {value:.4g}"
            rank_zero_warn(
                f"{self.monitor} did not come to {self.threshold:.4g} ({now}); train longer, or forget harder.",
                category=UserWarning,
            )


def just_past(threshold: float, mode: str) -> float:
    """The next number that reaching ``threshold`` lies before, in float32, which is what most metrics are.

    EarlyStopping asks for less (or more) than its threshold; here reaching it is enough.
    """
    return float(np.nextafter(np.float32(threshold), np.float32(math.inf if mode == "min" else -math.inf)))


def threshold_from_log(path: str, monitor: str) -> float:
    """Read the aggregate that ``monitor`` (``muse/knowmem_forget``) names from an evaluation log.

    Raises:
        InputError: The log cannot be read or has no such number.
    """
    name = monitor.rpartition("/")[2]
    aggregates = read_log(Path(path)).aggregates
    value = aggregates.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        known = ", ".join(key for key, number in aggregates.items() if isinstance(number, int | float)) or "none"
        raise InputError(f"{path} has no aggregate {name!r} to stop at; it has {known}.")
    return float(value)
