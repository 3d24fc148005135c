"""Base of the evaluation callbacks, which measure a policy without side effects on training."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics import Metric, MetricCollection

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.prompts import PromptName, prompt_style
from dipo_lightning.errors import InputError, check_numbers, options_of, refuse_unknown
from dipo_lightning.evaluation.aggregates import (
    Meanings,
    add_measured,
    aggregates,
    check_resamples,
    evaluation_document,
    evaluation_file,
    flat_numbers,
    interval_text,
    intervals,
    metric_collection,
    metric_meanings,
    metric_specs,
    retain_numbers,
    user_metrics,
)
from dipo_lightning.evaluation.benchmark import Benchmark
from dipo_lightning.evaluation.logs import check_comparable, read_log
from dipo_lightning.evaluation.provenance import provenance, run_settings, weights
from dipo_lightning.evaluation.rows import EvaluatedRows, EvaluationLog, Measuring, Row, with_skipped
from dipo_lightning.evaluation.run_folder import is_trial, run_folder, write_json
from dipo_lightning.evaluation.schedule import Schedule, Scheduled, interruptible
from dipo_lightning.evaluation.tensorboard import RunLogger, answers_table, chart_values
from dipo_lightning.evaluation.trackers import Tracker, trackers_of
from dipo_lightning.models.checkpoint import read_settled
from dipo_lightning.models.distributed import evaluation_mode

Document = dict[str, Any]
"""Stored evaluation: format, benchmark, settings, provenance, sets (rows), aggregates, skipped."""

FAST_DEV_ROWS = 2
"""Number of rows per set in a ``fast_dev_run``."""


class Evaluation(Scheduled):
    """Base of the callbacks that measure a policy during ``fit``, ``validate`` and ``test``.

    A subclass names its `benchmark`, checks its options in `check`, returns its settings in `settings`, and measures
    rows in `measure`; all run on every process. The metrics of the benchmark, and those that a user adds, are computed
    from the rows and go to every logger at ``trainer.global_step`` and to ``trainer.callback_metrics``, where
    ``ModelCheckpoint`` and ``EarlyStopping`` find them as ``{name}/...``. Every evaluation is a JSON file under
    ``evaluations`` in the run folder. The measured model is the LightningModule's ``policy``.

    Args:
        schedule: Moments of the evaluation: ``every_n_epochs`` (1), ``every_n_steps``, ``at_start`` (before
            unlearning), ``at_end``.
        measuring: Options of the measurement: ``batch_tokens``, ``generation_rows``, ``max_new_tokens``, ``generate``,
            ``min_k_fraction``, ``on_missing``.
        metrics: Further metrics by name: a class or its path, ``class_path`` with ``init_args``, or a metric. It can be
            any torchmetrics metric whose ``update`` takes ``rows``, the evaluated rows by set name, such as a subclass
            of `dipo_lightning.metrics.RowMean`.
        samples: Number of rows per set whose first and current answers are shown in the trackers.
        bootstrap: Number of resamples of the rows for a 95 % interval of every number, in the console, the log, the
            results page and ``compare``; 1000 is usual, 0 for none.
        bootstrap_seed: Seed of the resamples; with equal seeds all models are measured on the same resamples.
    """

    benchmark: ClassVar[Benchmark]
    name: ClassVar[str] = "evaluation"
    utility: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the names of the benchmark and of its utility."""
        super().__init_subclass__(**kwargs)
        if "benchmark" in vars(cls):
            cls.name, cls.utility = cls.benchmark.name, cls.benchmark.headline.utility

    def __init__(
        self,
        schedule: Schedule | None = None,
        measuring: Measuring | None = None,
        metrics: dict[str, Any] | None = None,
        samples: int = 20,
        bootstrap: int = 0,
        bootstrap_seed: int = 0,
        **unknown: Any,
    ) -> None:
        super().__init__(schedule)
        refuse_unknown(type(self).__name__, unknown)
        name = f"{type(self).__name__}.measuring"
        self.measuring = Measuring() if measuring is None else options_of(name, Measuring, measuring)
        self.measuring.check(self)
        check_numbers(self, {"samples": samples}, least=0)
        check_resamples(self, bootstrap, bootstrap_seed)
        if not isinstance(metrics or {}, Mapping):
            example = '{"answer_length": AnswerLength()}'
            raise InputError(f"{type(self).__name__}.metrics is {metrics!r}; give metrics by name: {example}.")
        self.bootstrap, self.bootstrap_seed = bootstrap, bootstrap_seed
        self.metrics, self.samples = dict(metrics or {}), samples
        self.retain: EvaluationLog | None = None
        self.retain_numbers: dict[str, float] = {}
        self.no_retain = ""  # the reason why there is no retain log, other than that none was given
        self.measures = MetricCollection({})
        self.meanings = Meanings()
        self.files: list[str] = []
        self.first: Document | None = None
        self.last: Document | None = None
        self._folder = Path("evaluations")
        self._described = False  # whether this evaluation was logged: the first one logs the hyper-parameters

    # Methods of a subclass.

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check options and data before any model is loaded, raising `InputError`; called in ``setup``."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a result, as plain values; available after `check`."""
        return {}

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> EvaluatedRows:
        """Measure ``pl_module.policy`` row by row; collective, with the same rows on every process."""
        raise TypeError(f"{type(self).__name__} must define measure()")

    def sources(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return the rows as read, by set, for metrics that need them (`RowValues.measured`)."""
        return {}

    def read_retain(self, path: str, usual: str = "") -> EvaluationLog:
        """Read a retain model's log, and check that it has the settings and questions of this evaluation (`sources`).

        Args:
            path: The log, as for `read_log`.
            usual: File to read if ``path`` names a data set of logs.
        """
        retain = read_log(path, usual, self.benchmark)
        planned: dict[str, list[Row]] = {
            name: [{"index": row["index"], "question": row["question"]} for row in rows]
            for name, rows in self.sources().items()
        }
        check_comparable(EvaluationLog(self.benchmark.format, self.settings, planned), retain, self.benchmark)
        return retain

    # Parts of an evaluation.

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Document:
        """Measure every row, update the metrics, and return the evaluation without its provenance."""
        rows, settings = self.measure(trainer, pl_module), self.all_settings()
        add_measured(self.measures.values(), rows.sets, self.sources())
        self.benchmark.prepare(rows.sets, settings)
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        # Metrics exchange states on the strategy's device; torchmetrics' own classes do so even in a group of one.
        found = aggregates(self.measures, rows.whole(), pl_module.device if grouped else None)
        for name in [name for name in found if name.endswith("_absent") and self.no_retain]:
            metric = self.measures[name.removesuffix("_absent")]
            if getattr(metric, "needs_retain", ()):
                found[name] = self.no_retain
        more = {"skipped": rows.skipped, **self._intervals()}
        return evaluation_document(self.benchmark, settings, rows.sets, found, **more)

    def _intervals(self) -> Document:
        """Return the intervals of the numbers just computed, and the settings of the bootstrap."""
        if not self.bootstrap:
            return {}
        drawn = {"resamples": self.bootstrap, "seed": self.bootstrap_seed}
        return {"bootstrap": drawn, "intervals": intervals(self.measures, self.bootstrap, self.bootstrap_seed)}

    def all_settings(self) -> dict[str, Any]:
        """Return the settings, including the metrics that the user added."""
        return self.settings | ({"metrics": metric_specs(self.metrics)} if self.metrics else {})

    def scalars(self, document: Document) -> dict[str, float]:
        """Return the numbers to log, without the prefix ``{self.name}/``: every number among the aggregates.

        A group of numbers, ``forget_quality: {p: ..., d: ...}``, becomes ``forget_quality_p``, ``forget_quality_d``.
        """
        return flat_numbers(document["aggregates"])

    def summary(self, document: Document) -> str:
        """Return the short table printed after an evaluation."""
        now, before = self.scalars(document), None if self.first is None else self.scalars(self.first)
        shown = [*(self.benchmark.shown or now)]
        added = tuple(f"{name}_" for name in self.metrics)
        shown += [key for key in now if key not in shown and f"{key}_".startswith(added)]
        title = self.benchmark.describe(document["settings"], document["sets"])
        return summary_table(
            title, before, now, {key: self.meanings[key].label for key in shown}, document, self.meanings
        )

    def line(self, document: Document) -> str:
        """Return the line that an evaluation prints during a fit, shorter in a narrow terminal."""
        now, where, brief = self.scalars(document), document["provenance"], self.benchmark.brief
        names = [name for name in brief or self.benchmark.shown or now if name in now][:4]
        numbers = ", ".join(f"{self.meanings[name].label.replace(':', '')} {now[name]:.3g}" for name in names)
        line = f"epoch {where['epoch']:>3}, step {where['step']:>5}: {numbers}"
        width = shutil.get_terminal_size().columns
        if len(line) <= width or not sys.stdout.isatty():
            return line
        line = f"epoch {where['epoch']}:"
        for part in (f" {brief.get(name, name)} {now[name]:.3g}" for name in names):
            line += part if len(line + part) <= width else ""
        return line

    def pictures(self, document: Document) -> dict[str, Any]:
        """Return the pictures of an evaluation, matplotlib figures by tag."""
        return dict(self.benchmark.pictures(document["sets"], document["aggregates"], self.retain))

    def show(self, tracker: Tracker, document: Document, step: int) -> None:
        """Give a tracker the pictures, distributions and answers of an evaluation; called on rank 0 only."""
        sets, first = document["sets"], (self.first or document)["sets"]
        for tag, figure in self.pictures(document).items():
            tracker.figure(f"{self.name}/{tag}", figure, step)
        for tag, (name, field) in self.benchmark.histograms.items():
            values = [row[field] for row in sets.get(name, ()) if row.get(field) is not None]
            values = [value for value in values if math.isfinite(value)]
            if values:
                tracker.histogram(f"{self.name}/{tag}", values, step)
        for name, tag in self.benchmark.answers.items():
            if any(row.get("generation") is not None for row in sets.get(name, ())):
                cells = answers_table(first.get(name, [])[: self.samples], sets[name])
                tracker.answers(f"{self.name}/{tag}", cells, step)

    # Access to the run for subclasses.

    @staticmethod
    def is_trial(trainer: pl.Trainer) -> bool:
        """Return whether this is a ``fast_dev_run``, which measures `FAST_DEV_ROWS` rows per set."""
        return is_trial(trainer)

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

    def style_of(self, trainer: pl.Trainer, chosen: PromptName | None = None) -> PromptStyle:
        """Return the chosen prompt style, or the data module's.

        Raises:
            InputError: No style is chosen and the data module has none, or it has no tokenizer.
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

    # Course of an evaluation.

    def owns(self, number: str) -> bool:
        """Return whether a logged number is of this evaluation, by its name."""
        return number.startswith(f"{self.name}/")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check everything before the model is loaded, and reset the state of an earlier run."""
        if stage == TrainerFn.FITTING:
            self.files, self.first, self.last, self.last_step, self._described = [], None, None, None, False
        refuse_twins(trainer.callbacks)  # type: ignore[attr-defined]
        self.check(trainer, pl_module)
        if hasattr(self, "benchmark"):
            self.prepare_metrics()
        elif type(self).measure is not Evaluation.measure and type(self).evaluate is Evaluation.evaluate:
            raise InputError(f"{type(self).__name__} has no benchmark; set its class attribute `benchmark`.")

    def prepare_metrics(self) -> None:
        """Build the metrics, once the settings and the retain log are known."""
        settings = self.settings
        self.retain_numbers = {}
        if self.retain is not None:
            self.retain_numbers = retain_numbers(self.benchmark, self.retain, settings)
            self.retain = prepared(self.retain, self.benchmark, settings)
        own = self.benchmark.metrics(settings, self.retain)
        metrics: dict[str, Metric] = {**own, **user_metrics(self.metrics, own, self.benchmark.sets_of(settings))}
        self.measures, self.meanings = metric_collection(metrics), metric_meanings(metrics)

    def run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Measure, log and write."""
        started = time.monotonic()
        forward = trainer.strategy.precision_plugin.forward_context()
        with evaluation_mode(pl_module), forward, interruptible(trainer):
            document = self.evaluate(trainer, pl_module)
        epoch, step = position(trainer, pl_module, epoch)
        seconds = round(time.monotonic() - started, 3)
        document["provenance"] = provenance(trainer, pl_module) | {"epoch": epoch, "step": step, "seconds": seconds}
        self._publish(trainer, pl_module, document)
        self._write(trainer, document)
        self.first, self.last = self.first or document, document

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table of the whole fit, after the last evaluation."""
        super().on_fit_end(trainer, pl_module)
        if trainer.is_global_zero and self.last is not None:
            print_lines(trainer, f"\n{self.summary(self.last)}\nEvery row and text: {Path(self.files[-1]).parent}")

    def outdated(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Return whether the last evaluation was made at another step or with other weights; collective."""
        if super().outdated(trainer, pl_module) or not self.files:
            return True
        if not trainer.strategy.broadcast(os.path.exists(self.files[-1])):  # the first process writes them
            return True
        last = self.last or json.loads(Path(self.files[-1]).read_text(encoding="utf-8"))
        return last["provenance"].get("model", {}).get("trained") != weights(pl_module).get("trained")

    def _publish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, document: Document) -> None:
        """Log the scalars; in ``validate`` and ``test`` through Lightning, which returns them to the caller."""
        scalars = {f"{self.name}/{key}": value for key, value in self.scalars(document).items()}
        step = document["provenance"]["step"]
        # float64: a p-value of 1e-119 is 0 in float32
        tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in scalars.items()}
        if trainer.state.fn == TrainerFn.FITTING:
            trainer.callback_metrics.update(tensors)
            for logger in trainer.loggers:
                logged = self._log_hyperparameters(logger, scalars, step, trainer, pl_module)
                logger.log_metrics({tag: value for tag, value in scalars.items() if tag not in logged}, step=step)
                if isinstance(logger, RunLogger):
                    logger.log_charts(chart_values(self.benchmark, self.scalars(document), self.retain_numbers), step)
            self._described = True
        else:  # Lightning logs the other values at this `step`
            tensors["step"] = torch.tensor(float(step))
            pl_module.log_dict(tensors, on_epoch=True, sync_dist=True)  # equal everywhere, and so is their mean
        for tracker in trackers_of(trainer):
            self.show(tracker, document, step)

    def _log_hyperparameters(
        self, logger: Any, scalars: Mapping[str, float], step: int, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, float]:
        """Log the hyper-parameters once in a fit, with the metrics of all evaluations that HPARAMS shows.

        Returns the scalars logged this way.
        """
        evaluations = [one for one in trainer.callbacks if isinstance(one, Evaluation)]  # type: ignore[attr-defined]
        if any(one._described for one in evaluations):
            return {}
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(run_settings(trainer, pl_module))
            return {}
        names = {one.name: one.benchmark.hyperparameter_metrics for one in evaluations if hasattr(one, "benchmark")}
        own = {tag: scalars[tag] for key in names.pop(self.name, ()) if (tag := f"{self.name}/{key}") in scalars}
        # TensorBoard keeps the first summary of a run, which has to name all metrics; {} is a metric without a value.
        others: dict[str, Any] = {f"{name}/{key}": {} for name, keys in names.items() for key in keys}
        if own or others:  # `hparams`: those of the module and the data module, which the Trainer has logged
            logger.log_hyperparams(dict(logger.hparams) | run_settings(trainer, pl_module), own | others, step)
        return own

    def _write(self, trainer: pl.Trainer, document: Document) -> None:
        """Write the document on rank 0, and print its path and summary."""
        path = trainer.strategy.broadcast(self._path(run_folder(trainer) / "evaluations", trainer, document))
        if trainer.is_global_zero:
            write_json(path, document)
            fitting = trainer.state.fn == TrainerFn.FITTING
            text = self.line(document) if fitting else f"{self.summary(document)}\nEvery row and text: {path}"
            print_lines(trainer, text)
        if str(path) not in self.files:
            self.files.append(str(path))

    def _path(self, folder: Path, trainer: pl.Trainer, document: Document) -> Path:
        """Return the path of an evaluation: a file per step of a fit, and a new one for each validation or test."""
        name = evaluation_file(self.name, document["provenance"])
        assert trainer.state.fn is not None
        if trainer.state.fn == TrainerFn.FITTING:
            return folder / f"{name}.json"
        name, number = f"{name}_{trainer.state.fn.value}", 2
        path = folder / f"{name}.json"
        while path.exists():
            path, number = folder / f"{name}_{number}.json", number + 1
        return path

    @contextmanager
    def progress(self, trainer: pl.Trainer, total: int, what: str) -> Iterator[Callable[[int], object]]:
        """Show a progress bar on rank 0 within a block, if the Trainer has one; yields the function that advances it.

        No bar is drawn beside Rich's (Lightning's choice in notebooks and if rich is installed), which would print each
        state of another bar on a new line.
        """
        from tqdm.auto import tqdm

        beside = trainer.progress_bar_callback
        shown = trainer.is_global_zero and beside is not None and not isinstance(beside, RichProgressBar)
        with tqdm(
            total=total, desc=f"{self.name}: {what}", disable=not (shown and total), leave=False, dynamic_ncols=True
        ) as bar:
            yield bar.update

    # State in checkpoints: plain values.

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last evaluation and the paths of all files."""
        return {"last_step": self.last_step, "files": list(self.files)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the folder of this run's evaluations before the state is loaded."""
        self._folder = run_folder(trainer) / "evaluations"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the last step and the files, and read the run's first evaluation (before unlearning) from disk."""
        self.last_step, files = state_dict["last_step"], map(Path, state_dict["files"])
        here = ((file, self._folder / file.name) for file in files)  # a run may have been moved
        self.files = [str(moved if moved.exists() and not file.exists() else file) for file, moved in here]
        if self.files and os.path.exists(self.files[0]):
            self.first = json.loads(Path(self.files[0]).read_text(encoding="utf-8"))


def position(trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> tuple[int, int]:
    """Return the epochs and the optimiser steps that the weights evaluated by ``trainer`` were trained for.

    In ``validate`` and ``test`` they are read from the loaded checkpoint, if any; else they are those that the module
    has kept. Without them, and in ``fit``, ``epoch`` and the step are the trainer's own.
    """
    path = trainer.ckpt_path
    if trainer.state.fn == TrainerFn.FITTING:
        return epoch, trainer.global_step
    if not path:
        found: tuple[int, int] = getattr(pl_module, "trained_for", (epoch, trainer.global_step))
        return found
    checkpoint = read_settled(Path(path))
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"], checkpoint["global_step"]


def refuse_twins(callbacks: Iterable[object]) -> None:
    """Raise an `InputError` if two evaluations have one name, since they would overwrite each other's results."""
    names = Counter(callback.name for callback in callbacks if isinstance(callback, Evaluation))
    for name, count in names.items():
        if count > 1:
            raise InputError(
                f"trainer.callbacks has {count} evaluations named {name!r}; their files and scalars would overwrite "
                "each other. Measure the others with `validate`."
            )


def prepared(log: EvaluationLog, benchmark: Benchmark, settings: Mapping[str, Any]) -> EvaluationLog:
    """Return a retain model's log as metrics need it, with skipped rows and derived fields."""
    sets = with_skipped(log.sets, log.skipped)
    benchmark.prepare(sets, settings)
    return replace(log, sets=sets)


def summary_table(
    title: str,
    before: dict[str, float] | None,
    now: dict[str, float],
    names: Mapping[str, str],
    document: Mapping[str, Any],
    meanings: Meanings,
) -> str:
    """Return the table of an evaluation: a line per scalar in ``names`` (label by name), now and, if given, before.

    Intervals stand beside their scalars; the reasons for missing numbers and the rows left out come last.
    """

    def cell(values: dict[str, float], name: str) -> str:
        value = values.get(name, math.nan)
        return f"{'-' if math.isnan(value) else f'{value:.4g}':>12}"

    where, ends = document["provenance"], document.get("intervals") or {}
    lines = [f"{title}, epoch {where['epoch']}, step {where['step']}:"]
    if before is not None:
        lines.append(f"  {'':<32}{'first':>12}{'now':>12}")
    for name, label in names.items():
        if name not in now and name not in (before or {}):
            continue  # not measured in this run
        end = f"  {interval_text(ends[name])}" if name in ends else ""
        lines.append(f"  {label:<32}{'' if before is None else cell(before, name)}{cell(now, name)}{end}")
    for name, reason in document["aggregates"].items():
        if name.endswith("_absent"):
            lines.append(f"  No {meanings[name.removesuffix('_absent')].label}: {reason}.")
    for name, rows in document["skipped"].items():
        lines.append(f"  {len(rows)} rows of {name} have no value and were left out (see `skipped` in the file).")
    return "\n".join(lines)


def print_lines(trainer: pl.Trainer, text: str) -> None:
    """Print a text with its final line break in one call.

    Otherwise a notebook with Rich's progress bar recurses without end: Rich holds an unfinished line back until the
    next flush, and ipykernel flushes before it shows anything.
    """
    trainer.print(f"{text}\n", end="")
