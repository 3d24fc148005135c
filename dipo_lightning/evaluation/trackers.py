"""Pictures, tables of answers, texts and files for every Lightning logger that supports them.

Scalars and hyper-parameters are logged through Lightning. Media have no common interface there, and go through a
`Tracker` for TensorBoard, for W&B and trackio (whose interfaces agree), for MLflow, or for CSV. Other loggers get
scalars and hyper-parameters only.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _convert_params
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.tensorboard import COLUMNS, in_markdown
from dipo_lightning.safety.display import visible

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

MEDIA = "media"
"""Folder of a CSV logger's pictures and tables, beside its ``metrics.csv``."""

Cells = Sequence[Sequence[str]]
"""Rows of a table of answers, with a cell per column of `COLUMNS`."""


class TrackioLogger(Logger):
    """Logger for trackio, which stores runs on this machine or in a Space of the hub.

    Args:
        project: Name of the project.
        name: Name of the run; trackio invents one by default.
        space_id: A Space to log to, ``owner/name``; None keeps everything on this machine.
        private: Whether a new Space is private.
        resume: ``allow`` continues a run of this name if there is one, ``must`` fails without one, ``never`` begins a
            new one.
    """

    def __init__(
        self,
        project: str = "dipo-lightning",
        name: str | None = None,
        space_id: str | None = None,
        private: bool = True,
        resume: Literal["allow", "never", "must"] = "allow",
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("trackio") is None:
            raise InputError("TrackioLogger needs trackio: pip install 'dipo-lightning[trackio]'")
        self._project, self._name = project, name
        self._options = {"space_id": space_id, "private": private, "resume": resume}
        self._run: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, which is created on first use."""
        if self._run is None:
            trackio: Any = importlib.import_module("trackio")
            self._run = trackio.init(self._project, self._name, embed=False, auto_log_cpu=False, **self._options)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the run's configuration, which is stored with the first scalars."""
        self.experiment.config.update({name: str(value) for name, value in _convert_params(params).items()})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log scalars or media of a step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run after all data is written."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str | None:
        """Name of the run."""
        return self._name


class Tracker:
    """Base class for logging media to a Lightning logger; used on rank 0 only."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Add a picture of a step."""

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """Add a distribution of a step; as a picture if the logger does not support distributions."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot(xlabel=tag.rpartition("/")[2], ylabel="rows")
        axes.hist(values, bins=30)
        self.figure(tag, figure, step)

    def answers(self, tag: str, cells: Cells, step: int) -> None:
        """Add a table of the model's first and current answers."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text in fixed width."""

    def file(self, path: Path) -> None:
        """Add a file as an artifact."""


class TensorBoardTracker(Tracker):
    """Images, distributions and texts of TensorBoard, which does not support files."""

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Add an image."""
        self.logger.experiment.add_figure(tag, figure, step)

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """Add a distribution."""
        self.logger.experiment.add_histogram(tag, torch.tensor(values), step)

    def answers(self, tag: str, cells: Cells, step: int) -> None:
        """Add a Markdown table under TEXT."""
        self.logger.experiment.add_text(tag, in_markdown(cells), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a Markdown code block under TEXT."""
        self.logger.experiment.add_text(tag, indented(text), step)


class RunTracker(Tracker):
    """Media and artifacts of the package ``wandb`` or ``trackio``."""

    def __init__(self, logger: Any, package: str) -> None:
        super().__init__(logger)
        self.package, self.kinds = package, importlib.import_module(package)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Add an image."""
        self.logger.log_metrics({tag: self.kinds.Image(pixels(figure))}, step)

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """Add a distribution."""
        self.logger.log_metrics({tag: self.kinds.Histogram(list(values))}, step)

    def answers(self, tag: str, cells: Cells, step: int) -> None:
        """Add a table; for trackio, which renders cells as Markdown, as an escaped Markdown table."""
        if self.package == "trackio":
            table = self.kinds.Markdown(in_markdown(cells))
        else:
            table = self.kinds.Table(columns=list(COLUMNS), data=[[visible(cell) for cell in row] for row in cells])
        self.logger.log_metrics({tag: table}, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text."""
        if self.package == "trackio":
            shown = self.kinds.Markdown(indented(text))
        else:
            shown = self.kinds.Html(f"<pre>{html.escape(visible(text, 100_000))}</pre>", inject=False)
        self.logger.log_metrics({tag: shown}, step)

    def file(self, path: Path) -> None:
        """Add a file as an artifact of the run."""
        self.logger.experiment.log_artifact(str(path), type="results")


class MLFlowTracker(Tracker):
    """Artifacts of an MLflow run: pictures and tables by tag and step."""

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Add a PNG."""
        self.logger.experiment.log_figure(self.logger.run_id, figure, f"{_at(tag, step)}.png")

    def answers(self, tag: str, cells: Cells, step: int) -> None:
        """Add a table, which MLflow stores as JSON."""
        columns = {name: [visible(row[place]) for row in cells] for place, name in enumerate(COLUMNS)}
        self.logger.experiment.log_table(self.logger.run_id, columns, f"{_at(tag, step)}.json")

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text file."""
        self.logger.experiment.log_text(self.logger.run_id, text, f"{tag}.txt")

    def file(self, path: Path) -> None:
        """Add a file."""
        self.logger.experiment.log_artifact(self.logger.run_id, str(path))


class CSVTracker(Tracker):
    """PNG and CSV files beside ``metrics.csv``, by tag and step; texts and pages are in the run folder."""

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Write a PNG."""
        figure.savefig(self._path(tag, step, "png"))

    def answers(self, tag: str, cells: Cells, step: int) -> None:
        """Write a CSV file."""
        with self._path(tag, step, "csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *([visible(cell) for cell in row] for row in cells)])

    def _path(self, tag: str, step: int, ending: str) -> Path:
        path = Path(self.logger.log_dir) / MEDIA / f"{_at(tag, step)}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def tracker_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of W&B and MLflow, if loaded, for a missing login or an unreachable server."""
    bases = {"wandb.errors": "Error", "mlflow.exceptions": "MlflowException"}
    return tuple(getattr(sys.modules[module], name) for module, name in bases.items() if module in sys.modules)


def trackers_of(trainer: pl.Trainer) -> list[Tracker]:
    """Return the trackers of a Trainer's loggers; empty on ranks other than 0."""
    if not trainer.is_global_zero:
        return []
    found = [_tracker(logger) for logger in trainer.loggers]
    return [tracker for tracker in found if tracker is not None]


def _tracker(logger: Logger) -> Tracker | None:
    match logger:
        case TensorBoardLogger():
            return TensorBoardTracker(logger)
        case WandbLogger():
            return RunTracker(logger, "wandb")
        case TrackioLogger():
            return RunTracker(logger, "trackio")
        case MLFlowLogger():
            return MLFlowTracker(logger)
        case CSVLogger():
            return CSVTracker(logger)
    return None


def pixels(figure: Figure) -> np.ndarray:
    """Draw a figure, and return its pixels, (height, width, 4) uint8."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def indented(text: str) -> str:
    """Return a text as a code block in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _at(tag: str, step: int) -> str:
    return f"{tag}_step={step:05d}"
