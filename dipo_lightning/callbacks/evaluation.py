"""What every evaluation shares: when it runs, that training doesn't notice it, and where its results go."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dipo_lightning.callbacks.files import write_json
from dipo_lightning.callbacks.provenance import provenance
from dipo_lightning.errors import InputError
from dipo_lightning.metrics.columns import flat_numbers
from dipo_lightning.row_batches import evaluation_mode

Document = dict[str, Any]
"""One evaluation as it is written: format, settings, provenance, sets (rows), aggregates, skipped."""


class Evaluation(pl.Callback):
    """Base of the callbacks that measure a policy during ``fit``, ``validate`` and ``test``.

    A subclass names itself (``name``), checks its options in `check` and measures in `evaluate`; both run on every
    process. Scalars go to every logger at ``trainer.global_step`` and into ``trainer.callback_metrics``, where
    ``ModelCheckpoint`` and ``EarlyStopping`` find them as ``{name}/...``. Every evaluation is one JSON file under
    ``{trainer.log_dir}/evaluations``. The module measured is the LightningModule's ``policy``.

    Args:
        every_n_epochs: Evaluate at the end of every n-th epoch; None for not at epochs.
        every_n_steps: Evaluate after every n-th optimiser step; None for not at steps.
        at_start: Evaluate before the first step (the answers "before"); not on a resume.
        at_end: Evaluate after the last step, unless that has just been done.
    """

    name = "evaluation"

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
    ) -> None:
        super().__init__()
        for option, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise InputError(
                    f"{type(self).__name__}.{option} is {value}; it must be at least 1, or null for never."
                )
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.at_start, self.at_end = at_start, at_end
        self.files: list[str] = []
        self.first: Document | None = None
        self.last: Document | None = None
        self._last_step: int | None = None
        self._described = False  # whether the loggers of this process have the hyper-parameters with their metrics

    # What a subclass gives.

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse with an `InputError` what can't be right, before any model is loaded; called in ``setup``."""

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Document:
        """Measure ``pl_module.policy``; collective, and the same document on every process."""
        raise TypeError(f"{type(self).__name__} must define evaluate()")

    def scalars(self, document: Document) -> dict[str, float]:
        """Return what is logged, by its name after ``{self.name}/``: every number among the aggregates.

        A group of numbers, ``forget_quality: {p: ..., d: ...}``, becomes ``forget_quality_p``, ``forget_quality_d``.
        """
        return flat_numbers(document["aggregates"])

    def summary(self, document: Document) -> str:
        """Return the short table that is printed after an evaluation."""
        return "\n".join(f"  {name:<36}{value:.4g}" for name, value in self.scalars(document).items())

    def hyperparameter_metrics(self, document: Document) -> dict[str, float]:
        """Return the few numbers that TensorBoard's HPARAMS tab compares runs by."""
        return {}

    def write_tensorboard(self, experiment: Any, document: Document, step: int) -> None:  # noqa: ANN401
        """Add text, histograms and figures to a ``SummaryWriter``; called on rank 0 only."""

    # When it runs.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check everything before the model is loaded, and forget an earlier run."""
        if stage == TrainerFn.FITTING:
            self.files, self.first, self.last, self._last_step, self._described = [], None, None, None, False
        self.check(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate before the first step."""
        if self.at_start and trainer.global_step == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,  # noqa: ANN401
    ) -> None:
        """Evaluate after every n-th optimiser step."""
        if self.every_n_steps and trainer.global_step > 0 and trainer.global_step % self.every_n_steps == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate after every n-th epoch; ``ModelCheckpoint`` and ``EarlyStopping`` come after this."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._run_once(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final policy."""
        if self.at_end:
            self._run_once(trainer, pl_module, trainer.current_epoch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in ``trainer.validate``; the validation loop inside ``fit`` isn't one of ours."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._run(trainer, pl_module, trainer.current_epoch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate in ``trainer.test``."""
        self._run(trainer, pl_module, trainer.current_epoch)

    def _run_once(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        if self._last_step != trainer.global_step:
            self._last_step = trainer.global_step
            self._run(trainer, pl_module, epoch)

    # What a run of it is.

    def _run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        started = time.monotonic()
        with evaluation_mode(pl_module), trainer.strategy.precision_plugin.forward_context():
            document = self.evaluate(trainer, pl_module)
        document["provenance"] = provenance(trainer, pl_module) | {
            "epoch": epoch,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - started, 3),
        }
        self._publish(trainer, pl_module, document)
        self._write(trainer, document, f"{self.name}_epoch={epoch:03d}_step={trainer.global_step:05d}.json")
        self.first, self.last = self.first or document, document

    def _publish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, document: Document) -> None:
        """Log the scalars; in validate and test through Lightning, which returns them to the caller."""
        scalars = {f"{self.name}/{key}": value for key, value in self.scalars(document).items()}
        # float64: a p-value of 1e-119 is 0 in float32
        tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in scalars.items()}
        if trainer.state.fn == TrainerFn.FITTING:
            trainer.callback_metrics.update(tensors)
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=trainer.global_step)
                self._log_hyperparameters(logger, document, trainer.global_step)
            self._described = True
        else:
            pl_module.log_dict(tensors, on_epoch=True, rank_zero_only=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                self.write_tensorboard(logger.experiment, document, trainer.global_step)

    def _log_hyperparameters(self, logger: Any, document: Document, step: int) -> None:  # noqa: ANN401
        """Give the HPARAMS tab its metrics: it stays empty unless hyper-parameters are logged together with some."""
        metrics = {f"hp/{key}": value for key, value in self.hyperparameter_metrics(document).items()}
        if not isinstance(logger, TensorBoardLogger) or not metrics:
            return
        if self._described:
            logger.log_metrics(metrics, step)
        else:  # `hparams`: what the Trainer gave this logger of the module and the data module
            logger.log_hyperparams(dict(logger.hparams), metrics, step)

    def _write(self, trainer: pl.Trainer, document: Document, file: str) -> None:
        """Write the document on rank 0, and say where and what it found."""
        folder = trainer.log_dir  # collective
        path = Path(folder or trainer.default_root_dir) / "evaluations" / file
        if trainer.is_global_zero:
            write_json(path, document)
            trainer.print(f"{self.summary(document)}\nEvery row and text: {path}")
        self.files.append(str(path))

    @contextmanager
    def progress(self, trainer: pl.Trainer, total: int, what: str) -> Iterator[Callable[[int], object]]:
        """Show a bar on rank 0 while a block runs (unless the Trainer has none); yields what counts rows."""
        from tqdm.auto import tqdm

        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with tqdm(total=total, desc=f"{self.name}: {what}", disable=not shown, leave=False, dynamic_ncols=True) as bar:
            yield bar.update

    # What a checkpoint holds of it: plain values.

    def state_dict(self) -> dict[str, Any]:
        """Return when it last ran and what it wrote."""
        return {"last_step": self._last_step, "files": list(self.files)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after an interruption: the first evaluation (the answers "before") is read from its file."""
        self._last_step, self.files = state_dict["last_step"], list(state_dict["files"])
        if self.files and os.path.exists(self.files[0]):
            self.first = json.loads(Path(self.files[0]).read_text(encoding="utf-8"))


def comparison_table(title: str, before: dict[str, float] | None, now: dict[str, float], names: dict[str, str]) -> str:
    """Write a short table: a title, then each named scalar now, and before where there was one.

    Args:
        title: First line.
        before: Scalars of the first evaluation of the run; None in that evaluation itself.
        now: Scalars of this one.
        names: What is shown, by scalar name.
    """

    def cell(values: dict[str, float], name: str) -> str:
        value = values.get(name, math.nan)
        return f"{'-' if math.isnan(value) else f'{value:.4g}':>12}"

    lines = [title] if before is None else [title, f"  {'':<28}{'first':>12}{'now':>12}"]
    for name, label in names.items():
        lines.append(f"  {label:<28}{'' if before is None else cell(before, name)}{cell(now, name)}")
    return "\n".join(lines)
