"""What every evaluation shares: that training doesn't notice it, and where its results go.

The short table that is printed after an evaluation.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.columns import flat_numbers
from dipo_lightning.evaluation.json_files import write_json
from dipo_lightning.evaluation.provenance import provenance
from dipo_lightning.evaluation.rows import EvaluatedRows
from dipo_lightning.evaluation.schedule import Scheduled
from dipo_lightning.models.distributed import evaluation_mode

Document = dict[str, Any]
"""One evaluation as it is written: format, settings, provenance, sets (rows), aggregates, skipped."""

FAST_DEV_ROWS = 2
"""Rows of each set that ``fast_dev_run`` measures."""


class Evaluation(Scheduled):
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
    title: ClassVar[str] = "Evaluation"
    #: What the printed table shows, by scalar name; every scalar where this is empty.
    shown: ClassVar[Mapping[str, str]] = {}
    #: What the table gives the reason for when it is not there, by aggregate name.
    may_be_absent: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
    ) -> None:
        super().__init__(every_n_epochs, every_n_steps, at_start, at_end)
        self.files: list[str] = []
        self.first: Document | None = None
        self.last: Document | None = None
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

    def describe(self, document: Document) -> str:
        """Return what was measured, for the first line of the table."""
        return self.title

    def summary(self, document: Document) -> str:
        """Return the short table that is printed after an evaluation."""
        now, before = self.scalars(document), None if self.first is None else self.scalars(self.first)
        names = self.shown or {name: name for name in now}
        return summary_table(self.describe(document), before, now, names, document, self.may_be_absent)

    def hyperparameter_metrics(self, document: Document) -> dict[str, float]:
        """Return the few numbers that TensorBoard's HPARAMS tab compares runs by."""
        return {}

    def write_tensorboard(self, experiment: Any, document: Document, step: int) -> None:
        """Add text, histograms and figures to a ``SummaryWriter``; called on rank 0 only."""

    # What subclasses take from the run.

    @staticmethod
    def is_trial(trainer: pl.Trainer) -> bool:
        """Tell whether the Trainer makes a ``fast_dev_run``, which measures `FAST_DEV_ROWS` rows of a set."""
        return bool(getattr(trainer, "fast_dev_run", False))

    def tokenizer_of(self, trainer: pl.Trainer) -> Any:
        """Return the data module's tokenizer.

        Raises:
            InputError: It has none.
        """
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is None:
            raise InputError(
                f"{type(self).__name__} needs a tokenizer: use a data module of this package, or one with `tokenizer`."
            )
        return tokenizer

    def style_of(
        self, trainer: pl.Trainer, chosen: Literal["chat", "plain", "llama2", "text"] | None = None
    ) -> PromptStyle:
        """Return the prompt style that is chosen, or the data module's.

        Raises:
            InputError: None is chosen and the data module has none, or no tokenizer.
        """
        if chosen is not None:
            return prompt_style(chosen, self.tokenizer_of(trainer))
        style = getattr(getattr(trainer, "datamodule", None), "style", None)
        if not isinstance(style, PromptStyle):
            raise InputError(
                f"{type(self).__name__} needs a prompt style; use a data module of this package, or one that has "
                "`tokenizer` and `style`."
            )
        return style

    def document(
        self, log_format: str, settings: dict[str, Any], rows: EvaluatedRows, aggregates: dict[str, Any]
    ) -> Document:
        """Put an evaluation together as it is written; its provenance is added when it is over."""
        return {
            "format": log_format,
            "settings": settings,
            "provenance": {},
            "sets": rows.sets,
            "aggregates": aggregates,
            "skipped": rows.skipped,
        }

    # What a run of it is.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check everything before the model is loaded, and forget an earlier run."""
        if stage == TrainerFn.FITTING:
            self.files, self.first, self.last, self._last_step, self._described = [], None, None, None, False
        refuse_twins(trainer.callbacks)  # type: ignore[attr-defined]
        self.check(trainer, pl_module)

    def run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Measure, log and write."""
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

    def _log_hyperparameters(self, logger: Any, document: Document, step: int) -> None:
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


def refuse_twins(callbacks: Iterable[object]) -> None:
    """Refuse two evaluations of one name in a run: one would overwrite the other's files and scalars.

    Raises:
        InputError: There are two.
    """
    names = Counter(callback.name for callback in callbacks if isinstance(callback, Evaluation))
    for name, count in names.items():
        if count > 1:
            raise InputError(
                f"trainer.callbacks has {count} evaluations named {name!r}; their files and scalars would overwrite "
                "each other. Measure the others with `validate`."
            )


def summary_table(
    title: str,
    before: dict[str, float] | None,
    now: dict[str, float],
    names: Mapping[str, str],
    document: Mapping[str, Any],
    absent: Mapping[str, str],
) -> str:
    """Write the table, then what is missing from it and why.

    Args:
        title: What was measured; the epoch and step are added.
        before: Scalars of the first evaluation of the run; None in that evaluation itself.
        now: Scalars of this one.
        names: What is shown, by scalar name.
        document: This evaluation.
        absent: What may be missing, by the name of its aggregate; ``NAME_absent`` beside it is the reason.
    """
    where = document["provenance"]
    lines = [comparison_table(f"{title}, epoch {where['epoch']}, step {where['step']}:", before, now, names)]
    for name, label in absent.items():
        if reason := document["aggregates"].get(f"{name}_absent"):
            lines.append(f"  No {label}: {reason}.")
    lines += [f"  {len(rows)} rows of {name} have no value and were left out (see `skipped` in the file)."
              for name, rows in document["skipped"].items()]  # fmt: skip
    return "\n".join(lines)


def comparison_table(
    title: str, before: dict[str, float] | None, now: dict[str, float], names: Mapping[str, str]
) -> str:
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
        if name not in now and name not in (before or {}):
            continue  # not measured in this run
        lines.append(f"  {label:<28}{'' if before is None else cell(before, name)}{cell(now, name)}")
    return "\n".join(lines)
