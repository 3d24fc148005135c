"""Console of ``fit``, ``validate`` and ``test``: it shows messages that matter to a user; the rest is logged to a file.

Messages of libraries about their build, tips, deprecations and devices are filtered out and written to ``console.log``
in the run folder; ``--verbose`` shows them. Progress bars are drawn in a terminal only.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from dipo_lightning.cli import STEP, VERBOSE
from dipo_lightning.cli.messages import warning_sentence

LOG = "console.log"
LOGGERS = ("lightning.pytorch", "lightning.fabric", "transformers")
NOISE = re.compile(
    r"^\s*$|^-+$|^Seed set to |(GPU|TPU|HPU|MPS|CUDA) (available|device)|Tip: |^Loading `\w+_dataloader` to estimate"
    r"|^`weights_only` was not set|^`Trainer\.\w+` stopped|^Restor(ing|ed) |^Using (16bit|bfloat16)|^LOCAL_RANK"
    r"|^This is a friendly reminder"  # of a text longer than the model's context, which scoring warns about
    r"|^Initializing distributed|^distributed_backend=|^All distributed processes|^You are using a CUDA device"
)
"""Messages of Lightning and transformers that need no action."""
USELESS = re.compile(
    r"does not have many workers|is smaller than the logging interval|directory .* exists and is not empty"
    r"|isinstance\(treespec, LeafSpec\)|is_gradient_checkpointing|sync_dist=True|litlogger|litmodels"
    r"|add the following callbacks: \[(\"ExportModel\{[^\"]*\"(, )?)+\]"  # without it there is nothing to export
)
"""Warnings on which a user cannot act."""


def is_verbose() -> bool:
    """Return whether all messages are shown."""
    return os.environ.get(VERBOSE) == "1"


class LogFile(logging.Handler):
    """Log file of a run, which buffers lines until the run folder is known."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self.path: Path | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Add a record."""
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        """Add lines; a log that cannot be written does not stop the run."""
        self.lines.append(text.rstrip("\n"))
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in self.lines)
            except OSError:
                return
            self.lines.clear()

    def open_in(self, folder: Path) -> None:
        """Write the buffered lines, and every later one, to the log file in a folder."""
        self.path = folder / LOG
        self.add("")


LOG_FILE = LogFile()


class Essential(logging.Filter):
    """Filter of console messages, which hides those below a level, noise and repetitions.

    Args:
        level: Lowest level that is shown.
    """

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__()
        self.level, self.seen = level, set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown."""
        return record.levelno >= self.level and self.shows(record.getMessage())

    def shows(self, message: str) -> bool:
        """Return whether a message is neither noise nor a repetition."""
        known = message in self.seen
        self.seen.add(message)
        return not known and not NOISE.search(message) and not USELESS.search(message)


class ToLog(io.TextIOBase):
    """Standard output of a step of a larger command, redirected to the log file."""

    def write(self, text: str) -> int:
        """Log the lines."""
        if text.strip():
            LOG_FILE.add(text)
        return len(text)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep noise off the console while a command runs."""
    is_step = os.environ.get(STEP) == "1" and not is_verbose()
    from transformers.utils import logging as transformers_logging

    essential, plain = Essential(logging.WARNING if is_step else logging.NOTSET), warnings.formatwarning
    loggers = [logging.getLogger(name) for name in LOGGERS]
    handlers = [] if is_verbose() else {handler for one in loggers for handler in handlers_of(one)}

    def sentence(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> str:
        """Log a warning, and return the line to show; empty if a user cannot act on it."""
        text = " ".join(str(message).split())
        LOG_FILE.add(f"{category.__name__}: {text}")
        if is_verbose():
            return plain(message, category, *where, **options)
        return warning_sentence(message, category) if essential.shows(text) else ""

    bars = is_verbose() or (sys.stderr.isatty() and not is_step)
    if not bars:
        transformers_logging.disable_progress_bar()
    for handler in handlers:
        handler.addFilter(essential)
    for logger in loggers:
        logger.addHandler(LOG_FILE)
    warnings.formatwarning = sentence
    try:
        if is_step:
            with redirect_stdout(ToLog()):
                yield
        else:
            yield
    finally:
        warnings.formatwarning = plain
        for logger in loggers:
            logger.removeHandler(LOG_FILE)
        for handler in handlers:
            handler.removeFilter(essential)
        if not bars:
            transformers_logging.enable_progress_bar()
        LOG_FILE.path = None
        LOG_FILE.lines.clear()


def handlers_of(logger: logging.Logger) -> Iterator[logging.Handler]:
    """Yield the handlers of a logger and its parents, except for those of the root, which are the user's."""
    one: logging.Logger | None = logger
    while one is not None and one is not logging.root:
        yield from one.handlers
        one = one.parent if one.propagate else None


def trainer_options(given: Any, callbacks: Sequence[Any]) -> tuple[dict[str, bool], list[pl.Callback]]:
    """Return options and callbacks for the Trainer's output, where the user has not chosen them."""
    summary = is_verbose() if given.enable_model_summary is None else given.enable_model_summary
    options = {"enable_model_summary": bool(summary)}
    if given.enable_progress_bar is False or any(isinstance(one, ProgressBar) for one in callbacks):
        return options, []
    terminal = sys.stderr.isatty()
    return options | {"enable_progress_bar": terminal}, [Bar()] if terminal else []


class Bar(ProgressBar):
    """Progress bar over a whole fit, as wide as the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: Any = None
        self.enabled = True

    def disable(self) -> None:
        """Draw nothing, as on all processes but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Draw again."""
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the position of a resumed run."""
        batches = trainer.num_training_batches
        total = batches * trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        if trainer.max_steps > 0:
            steps = trainer.max_steps * trainer.accumulate_grad_batches
            total = steps if total is None else min(total, steps)
        done = batches * trainer.current_epoch
        self.bar = tqdm(
            total=total, initial=done, desc="training", leave=False, dynamic_ncols=True, disable=not self.enabled
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by a batch, and show the loss."""
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        self.bar.set_postfix(metrics, refresh=False)
        self.bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the next message starts on a new line."""
        if self.bar is not None:
            self.bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        tqdm.write(" ".join(map(str, args)))
