"""Contract of a benchmark, and the lookup of one by the format of its logs.

`score`, `report`, `compare`, the callbacks, TensorBoard and the log readers know a benchmark's sets, metrics and logs
only through its `Benchmark`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torchmetrics import Metric

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.rows import EvaluationLog, Row, Sets
from dipo_lightning.metrics import Probability, ROUGERecall, RowSet
from dipo_lightning.metrics.base import first_clause

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENTRY_POINTS = "dipo_lightning.benchmarks"
"""Group of entry points under which an installed package names its benchmarks."""


@dataclass(frozen=True)
class Chart:
    """Chart of several numbers over the steps of a run.

    Attributes:
        title: Title of the chart.
        words: Sentence that explains the chart.
        curves: Labels of the curves, by the name of the number that each shows.
    """

    title: str
    words: str
    curves: Mapping[str, str]


ROUGE_CHART = Chart(
    f"{ROUGERecall.label}: what it still says",
    first_clause(ROUGERecall.meaning),
    {"forget_rouge": "must be forgotten", "retain_rouge": "must be kept"},
)
PROBABILITY_CHART = Chart(
    f"{Probability.label} of the true answers",
    first_clause(Probability.meaning),
    {"forget_probability": "must be forgotten", "retain_probability": "must be kept"},
)
"""Charts of benchmarks with questions about forget and retain rows."""


@dataclass(frozen=True)
class Headline:
    """Pair of numbers by which runs are compared.

    Attributes:
        forget: Name of the number that measures forgetting.
        utility: Name of the number that measures utility, higher is better; empty if there is none.
        beside: Names of further numbers in a table of runs.
        needs: Options that the two numbers need, for messages.
        mark: A value of ``forget`` that pictures mark with a line, and its label.
        lowest: Lower end of the axis in pictures; smaller values are drawn at the edge.
    """

    forget: str
    utility: str
    beside: tuple[str, ...] = ()
    needs: str = "at_start: true"
    mark: tuple[float, str] | None = None
    lowest: float | None = None


@dataclass(frozen=True)
class ForeignFormat:
    """Log format of another package that holds a benchmark's rows.

    Attributes:
        name: Name of the format, `EvaluationLog.format`.
        file: Usual file name and author, for messages.
        recognises: Function that tests whether a JSON object is a log in this format.
        read: Function that converts a JSON object and its path to a log.
        whole_prompts: Whether the `question` of its rows is the whole prompt.
    """

    name: str
    file: str
    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Path], EvaluationLog]
    whole_prompts: bool = False


class Benchmark:
    """Base class of benchmarks, with everything except their data and measurement.

    A subclass sets the attributes and defines `metrics`. It needs no registration, since the log of an evaluation names
    its class. An installed package may name it as an entry point of the group ``dipo_lightning.benchmarks``.

    Attributes:
        name: Prefix of its numbers and files, such as ``tofu``.
        title: Name for a reader.
        format: Name of its log format, with a version.
        foreign_formats: Formats of other packages that can be read as its rows.
        sets: Sets of rows that a log may hold.
        row: Type of its rows, `Row` or a subclass, by which the numbers of a log are checked.
        headline: Numbers by which runs are compared.
        shown: Names of the numbers in the table printed after an evaluation, and at the top of the results page.
        brief: Short labels for a narrow terminal, by the names of the numbers in the line printed during a fit; if
            empty, the line has the first numbers of `shown`.
        hyperparameter_metrics: Names of the numbers in TensorBoard's HPARAMS tab.
        retain_values: Numbers that a retain model has by definition, since it is compared with itself.
        compared_settings: Settings that change a row's numbers: if two compared logs both state one, they must agree.
        compared_sets: Sets that are compared with a retain model's row by row.
        score_options: Settings that ``score`` may replace.
        columns_beside: Name patterns of the numbers that become columns (``{name}_{number}``) of comparisons on
            another benchmark. If there are any, runs are never compared on this benchmark itself.
        charts: Charts of the results page and of TensorBoard.
        answers: Tag of the table of generated answers, by set.
        histograms: Set, and field of its rows, whose distribution is shown, by tag.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    format: ClassVar[str]
    foreign_formats: ClassVar[tuple[ForeignFormat, ...]] = ()
    sets: ClassVar[tuple[RowSet, ...]] = ()
    row: ClassVar[type] = Row
    headline: ClassVar[Headline]
    shown: ClassVar[tuple[str, ...]] = ()
    brief: ClassVar[Mapping[str, str]] = {}
    hyperparameter_metrics: ClassVar[tuple[str, ...]] = ()
    retain_values: ClassVar[Mapping[str, float]] = {}
    compared_settings: ClassVar[tuple[str, ...]] = ("split", "truth_ratio", "prompt_style", "min_k_fraction", "variant")
    compared_sets: ClassVar[tuple[str, ...]] = ()
    score_options: ClassVar[tuple[str, ...]] = ()
    columns_beside: ClassVar[tuple[str, ...]] = ()
    charts: ClassVar[tuple[Chart, ...]] = ()
    answers: ClassVar[Mapping[str, str]] = {}
    histograms: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def metrics(self, settings: Mapping[str, Any], retain: EvaluationLog | None = None) -> dict[str, Metric]:
        """Return the metrics of an evaluation by name, before any update; see `dipo_lightning.metrics.base`.

        Args:
            settings: Settings of the evaluation; missing ones have their defaults. Empty if only the meaning of the
                metrics is needed.
            retain: Prepared log of the retain model; None without one.
        """
        raise TypeError(f"{type(self).__name__} must define metrics()")

    def sets_of(self, settings: Mapping[str, Any]) -> tuple[RowSet, ...]:
        """Return the sets that a log with these settings may hold; `sets` by default."""
        return self.sets

    def prepare(self, sets: Sets, settings: Mapping[str, Any]) -> None:
        """Add derived fields to rows in place, whether they were just measured or read from a log."""

    def settings_of(self, log: EvaluationLog) -> dict[str, Any]:
        """Return the settings for recomputing the numbers of a log."""
        return dict(log.settings)

    def hub_log(self, pretrained: str, options: Mapping[str, Any]) -> str:
        """Return the retain model's log in open-unlearning's data set of logs; empty if it is unknown.

        Args:
            pretrained: Name of the target model.
            options: Options of the data: ``split``, ``data``.
        """
        return ""

    def describe(self, settings: Mapping[str, Any], sets: Sets) -> str:
        """Return a description of the evaluation for the first line of the printed table."""
        return self.title

    def table(self, document: Mapping[str, Any]) -> str:
        """Return a Markdown table of an evaluation for model cards; if empty, the card lists the numbers instead."""
        return ""

    def pictures(self, sets: Sets, aggregates: Mapping[str, Any], retain: EvaluationLog | None) -> dict[str, Figure]:
        """Return pictures of an evaluation by their tag."""
        return {}


def find_benchmark(log_format: str, class_path: str = "") -> Benchmark | None:
    """Return the benchmark of a log; None if it is unknown here.

    It is of the class that the log names, a subclass of an installed benchmark say, if that can be imported and built
    and has the log's format; else it is the installed benchmark of the format.
    """
    installed = next(
        (one for one in installed_benchmarks() if log_format in (one.format, *(f.name for f in one.foreign_formats))),
        None,
    )
    if not class_path:
        return installed
    try:
        found: Benchmark = made("benchmark", class_path, Benchmark, "my_project.MyBenchmark")
    except InputError:
        return installed
    return found if getattr(found, "format", None) == log_format else installed


def benchmark_of(document: Mapping[str, Any]) -> Benchmark | None:
    """Return the benchmark of a stored evaluation; None if it is unknown here."""
    return find_benchmark(document.get("format", ""), document.get("benchmark", ""))


@functools.cache
def installed_benchmarks() -> tuple[Benchmark, ...]:
    """Return the benchmarks of this package, one per folder, and those of other installed packages."""
    package = importlib.import_module("dipo_lightning.benchmarks")
    folders = (
        importlib.import_module(f"{package.__name__}.{one.name}") for one in pkgutil.iter_modules(package.__path__)
    )
    own = [kind for folder in folders for kind in vars(folder).values() if _is_benchmark(kind)]
    others = [kind for point in entry_points(group=ENTRY_POINTS) if _is_benchmark(kind := point.load())]
    return tuple(kind() for kind in [*own, *others])


def _is_benchmark(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Benchmark) and kind is not Benchmark


def import_class(path: str, base: type = object) -> Any:
    """Return the subclass of ``base`` at a dotted path; a bare name is one of the package's public classes.

    Raises:
        InputError: The class cannot be imported, or is not a subclass of ``base``.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module or "dipo_lightning"), name)
    except Exception as error:  # whatever a module raises
        raise InputError(
            f"The class {path} cannot be imported ({type(error).__name__}: {error}). Your own class must be in the "
            "folder from which you run the command, on PYTHONPATH, or in an installed package."
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        what = "class" if base is object else f"{base.__module__.partition('.')[0]}.{base.__name__}"
        raise InputError(f"{path} is not a {what}.")
    return found


def made(option: str, spec: Any, base: type, example: str, check: Callable[[type], object] | None = None) -> Any:
    """Build the object that a user specifies in an option.

    Args:
        option: Name of the option, for messages.
        spec: A class or its path, ``class_path`` with ``init_args``, or the object itself.
        base: Required base class.
        example: A class path, for messages.
        check: Called with the class before the object is built.

    Raises:
        InputError: The class cannot be imported or instantiated, or is of another kind.
    """
    if isinstance(spec, base):
        if check is not None:
            check(type(spec))
        return spec
    spec = spec.as_dict() if hasattr(spec, "as_dict") else spec  # a namespace of the parser
    spec = {"class_path": spec} if isinstance(spec, str | type) else spec
    given = spec.get("class_path") if isinstance(spec, Mapping) else None
    if not (isinstance(given, str) or (isinstance(given, type) and issubclass(given, base))):
        raise InputError(
            f"{option} is {spec!r}; give a class, {example}, or class_path and init_args; in Python, an object of such "
            "a class."
        )
    try:
        kind = import_class(given, base) if isinstance(given, str) else given
    except InputError as error:
        raise InputError(f"{option}: {error}") from error
    if check is not None:
        check(kind)
    try:
        return kind(**(spec.get("init_args") or {}))
    except Exception as error:  # whatever a constructor raises
        raise InputError(f"{option}: {given} cannot be built from its init_args: {error}.") from error
