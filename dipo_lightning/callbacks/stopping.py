"""Stop rules on the numbers of an evaluation: a threshold that is reached, a utility that collapses."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.callbacks.checkpoint import Checkpoint
from dipo_lightning.errors import InputError, RunError, check_arguments, check_positive
from dipo_lightning.evaluation.aggregates import flat_numbers
from dipo_lightning.evaluation.benchmark import find_benchmark, installed_benchmarks
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.evaluation.logs import read_log


class StopAtThreshold(EarlyStopping):
    """Stop rule: the first epoch whose metric falls (``min``) or rises (``max``) to a threshold is the last.

    This is Lightning's EarlyStopping with a threshold instead of patience; equality counts as reached. With the retain
    model's number as threshold, training ends with the first epoch that remembers no more than the retain model (MUSE's
    rule). The last checkpoint of a ``ModelCheckpoint`` that saves each epoch is then of this epoch.

    Args:
        monitor: Name of the metric, as the evaluation logs it.
        threshold: The value to reach.
        retain_log: Alternative to ``threshold``: this package's evaluation log of the retain model, whose aggregate of
            that name is the threshold.
        mode: ``min`` for a metric that must fall to the threshold, ``max`` for one that must rise to it.
        verbose: Report the value at each epoch.
    """

    def __init__(
        self,
        monitor: str,
        threshold: float | None = None,
        retain_log: str | None = None,
        mode: Literal["min", "max"] = "min",
        verbose: bool = False,
    ) -> None:
        if (threshold is None) == (retain_log is None):
            raise InputError("StopAtThreshold needs one of threshold and retain_log (the retain model's log).")
        check_arguments(self)
        if threshold is None:
            assert retain_log is not None
            threshold = threshold_from_log(retain_log, monitor)
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
        """Key that allows several rules, on different metrics, in one run."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a place before the evaluation that the rule watches, where it would always be an epoch late."""
        super().setup(trainer, pl_module, stage)
        if stage == TrainerFn.FITTING:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED  # a checkpoint's state is restored after this
        refuse_before_evaluation(self, trainer)

    @property
    def reached(self) -> bool:
        """True if the threshold has been reached, in this process or before an interruption."""
        return self.stopping_reason == EarlyStoppingReason.STOPPING_THRESHOLD

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train no further if the restored epoch had reached the threshold; Lightning would train on."""
        trainer.should_stop = trainer.should_stop or self.reached

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if the metric was logged and has reached the threshold."""
        if is_logged(f"{type(self).__name__}.monitor", self.monitor, trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn if the threshold was never reached."""
        if not self.reached:
            value = trainer.callback_metrics.get(self.monitor)
            now = "never logged" if value is None else f"now {value:.4g}"
            rank_zero_warn(
                f"{self.monitor} did not reach {self.threshold:.4g} ({now}); train longer, or with a higher learning "
                "rate.",
                category=UserWarning,
            )


def just_past(threshold: float, mode: str) -> float:
    """Return the float32 number next to ``threshold``, so that reaching ``threshold`` itself passes EarlyStopping.

    EarlyStopping requires a value beyond its threshold; here reaching it is enough. Most metrics are float32.
    """
    return float(np.nextafter(np.float32(threshold), np.float32(math.inf if mode == "min" else -math.inf)))


def threshold_from_log(path: str, monitor: str) -> float:
    """Read the aggregate that ``monitor`` (``NAME/NUMBER``) names from an evaluation log."""
    evaluation, _, name = monitor.partition("/")
    watched = next((one for one in installed_benchmarks() if one.name == evaluation), None)
    log = read_log(Path(path), benchmark=watched)
    benchmark = find_benchmark(log.format, log.benchmark)
    # An evaluation may have a name of its own; then the numbers of the log decide.
    if watched is not None and (benchmark is None or benchmark.name != evaluation):
        raise InputError(
            f"{log.path} is no log of the evaluation that StopAtThreshold.monitor names, {monitor!r}; give the retain "
            "model's log of that evaluation."
        )
    numbers = flat_numbers(log.aggregates)
    if name not in numbers:
        raise InputError(f"{path} has no aggregate {name!r} to stop at; it has {', '.join(numbers) or 'none'}.")
    return numbers[name]


def refuse_before_evaluation(rule: Any, trainer: pl.Trainer) -> None:
    """Raise an `InputError` if a stop rule comes before the evaluation that logs the number it watches."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks[callbacks.index(rule) :]:
        if isinstance(callback, Evaluation) and callback.owns(rule.monitor):
            raise InputError(
                f"{type(rule).__name__} watches {rule.monitor}, but stands before {type(callback).__name__} in "
                "trainer.callbacks; list it after that callback."
            )


def evaluations(trainer: pl.Trainer) -> list[Evaluation]:
    """Return the Trainer's evaluations."""
    return [one for one in trainer.callbacks if isinstance(one, Evaluation)]  # type: ignore[attr-defined]


def is_logged(option: str, name: str, trainer: pl.Trainer) -> bool:
    """Return whether the number that an option of a callback names is logged; False before its evaluation first runs.

    Raises:
        InputError: It is not, and no evaluation is about to log it.
    """
    if name in trainer.callback_metrics:
        return True
    for callback in evaluations(trainer):
        if callback.owns(name):
            began = any(map(callback.owns, trainer.callback_metrics))
            if not began and (callback.schedule.every_n_epochs or callback.schedule.every_n_steps):
                return False
    known = ", ".join(sorted(trainer.callback_metrics)) or "none"
    raise InputError(f"{option} is {name!r}, which nothing has logged. Logged: {known}.")


class StopOnCollapse(pl.Callback):
    """Stop rule: an error when a utility falls below a share of its first value, or below a number.

    The error names the step, the terms and rows of the last batch and the last good checkpoint, which the collapsed
    model does not overwrite. List it after the evaluation that logs the utility.

    Args:
        monitor: Name of the metric, as the evaluation logs it; higher is better. None takes the utility in the headline
            of the benchmark of the run's evaluation.
        share: Smallest share of its first value (of the model before unlearning).
        minimum: Smallest value, instead of or in addition to the share.
    """

    def __init__(self, monitor: str | None = None, share: float | None = None, minimum: float | None = None) -> None:
        super().__init__()
        if share is None and minimum is None:
            raise InputError("StopOnCollapse needs share (of the first value) or minimum.")
        check_positive(self, {"share": share}, most=1)
        if minimum is not None and not math.isfinite(minimum):
            raise InputError(f"StopOnCollapse.minimum is {minimum}; it must be a finite number.")
        self.given, self.share, self.minimum = monitor, share, minimum
        self.monitor = monitor or ""
        self.first: float | None = None

    follows_evaluations = True
    """This callback reads the numbers logged by an evaluation of the same step."""

    @property
    def state_key(self) -> str:
        """Key that allows several rules, on different metrics, in one run."""
        return self._generate_state_key(monitor=self.given)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the utility, and refuse a place before its evaluation: the collapsed model would be saved first."""
        if stage == TrainerFn.FITTING:
            self.first = None  # a checkpoint's state is restored after this
        if self.given is None:
            utilities = [f"{one.name}/{one.utility}" for one in evaluations(trainer) if one.utility]
            if not utilities:
                raise InputError(
                    "StopOnCollapse has no utility to watch: trainer.callbacks has no evaluation that measures one. "
                    "Add one, or name what to watch as monitor."
                )
            self.monitor = utilities[0]
        refuse_before_evaluation(self, trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the value before the first step.

        Raises:
            InputError: The evaluation of that moment has not measured it.
        """
        began = (one for one in evaluations(trainer) if any(map(one.owns, trainer.callback_metrics)))
        if any(one.owns(self.monitor) for one in began):
            is_logged(f"{type(self).__name__}.monitor", self.monitor, trainer)
        self._check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check after an evaluation at a step."""
        self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check after an evaluation at an epoch."""
        if is_logged(f"{type(self).__name__}.monitor", self.monitor, trainer):
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
            if not value >= floor:  # NaN counts as collapsed
                for callback in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, Checkpoint):
                        callback.forget_evaluated(trainer)
                what = f"The model has collapsed: {self.monitor} is {value:.4g}, below {floor:.4g} ({name})"
                situation = getattr(pl_module, "situation", None)  # any LightningModule may be evaluated
                raise RunError(situation(what) if situation else f"{what}, at step {trainer.global_step}.")

    def state_dict(self) -> dict[str, Any]:
        """Return the first value, which a resumed run does not measure again."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the first value of the interrupted run."""
        self.first = state_dict["first"]
