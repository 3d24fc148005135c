"""Numbers of an evaluation, computed by torchmetrics metrics from its rows, both live and from a log."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dipo_lightning.errors import DiPOError, InputError, check_numbers
from dipo_lightning.evaluation.benchmark import Benchmark, benchmark_of, made
from dipo_lightning.evaluation.rows import EvaluationLog, Sets, with_skipped
from dipo_lightning.evaluation.run_folder import finite
from dipo_lightning.metrics.base import Meaning, Rows, RowSet, RowValues, meanings
from dipo_lightning.models.distributed import rank_and_world

FEWEST_RESAMPLES = 40
"""Fewest resamples for a 95 % interval: one of them lies beyond each end."""


def metric_collection(metrics: Mapping[str, Metric]) -> MetricCollection:
    """Return the metrics as a collection in the given order."""
    collection = MetricCollection({}, compute_groups=False)
    for name, metric in metrics.items():  # one by one: given together they would be sorted by name
        collection.add_metrics({name: metric})
    return collection


def add_measured(metrics: Iterable[Metric], sets: Sets, sources: Rows) -> None:
    """Add to measured rows, in place, the fields that individual metrics compute themselves (`RowValues.measured`).

    A source row without an index is identified by its position.

    Raises:
        InputError: A metric returns a field that the rows have already, by measurement or from another metric. Two
            metrics of one class may share a field if they agree on its values.
    """
    owners: dict[str, dict[str, Any]] = {
        name: dict.fromkeys(field for row in rows for field in row) for name, rows in sets.items()
    }
    for metric in (one for one in metrics if isinstance(one, RowValues)):
        for of in metric.sets:
            read = {row.get("index", place): row for place, row in enumerate(sources.get(of.name, ()))}
            for row in sets.get(of.name, ()):
                if row["index"] not in read:
                    continue
                for field, value in metric.measured(row, read[row["index"]]).items():
                    owner = owners[of.name].setdefault(field, type(metric).measured)
                    if owner is not type(metric).measured or not _same(row.get(field, value), value):
                        raise InputError(
                            f"{class_path(type(metric))}.measured() returns the field {field!r}, which the rows of "
                            f"{of.name} have already; give it another name, such as one with the metric's arguments."
                        )
                    row[field] = value  # type: ignore[literal-required]  # its own field


def _same(first: Any, second: Any) -> bool:
    """Return whether two fields of a row have the same value."""
    return bool(first == second or (first != first and second != second))  # NaN is as NaN


def aggregates(collection: MetricCollection, rows: Sets, device: torch.device | None = None) -> dict[str, Any]:
    """Compute every metric from rows; collective, with the same result on every process.

    Args:
        collection: Metrics of an evaluation; earlier updates are reset.
        rows: Prepared rows by set name, skipped ones included. Every process passes all rows and uses its share.
        device: Device on which processes exchange tensors; by default the CPU.

    Returns:
        Plain values by name: numbers, groups of numbers, and None for numbers that cannot be computed or are infinite,
        with the reason under ``NAME_absent``; and ``unscored_rows`` by set, if there are any.

    Raises:
        InputError: A metric fails on the rows, or its result is neither a number nor a group of numbers, has the name
            of another number, or cannot be compared with the retain model.
    """
    rank, world = rank_and_world()
    collection.reset()
    collection.to(device or torch.device("cpu"))
    share = {name: list(some)[rank::world] for name, some in rows.items()}
    for name, metric in collection.items():
        _update(name, metric, share)
    found: dict[str, Any] = {}
    unscored: dict[str, list[int]] = {}
    for name, metric in collection.items():
        entries = _published(name, metric, metric.compute())
        if twice := _flat(found).keys() & _flat(entries).keys():
            raise InputError(f"metrics.{name}: another metric publishes {', '.join(sorted(twice))}; choose another.")
        found |= entries
        if isinstance(metric, RowValues) and metric.lists_unscored:
            unscored |= metric.unscored
    return found | ({"unscored_rows": unscored} if unscored else {})


def _update(name: str, metric: Metric, rows: Rows) -> None:
    """Give a metric its rows; whatever its own code raises becomes an `InputError` with its name."""
    try:
        metric.update(rows)
    except DiPOError:
        raise
    except Exception as error:
        raise InputError(
            f"metrics.{name}: {class_path(type(metric))} fails on the evaluated rows with {type(error).__name__}: "
            f"{error}. It must give a number, or None, for every row."
        ) from error


def intervals(collection: MetricCollection, resamples: int, seed: int = 0) -> dict[str, list[float]]:
    """Compute the bootstrap interval (lower, upper end) of every number, named as in `flat_numbers`; collective.

    The rows are those of the last call of `aggregates`, which the collection still holds (see `RowValues.intervals`).
    With 0 resamples the result is empty.
    """
    found: dict[str, list[float]] = {}
    for name, metric in collection.items():
        if resamples and hasattr(metric, "intervals"):
            ends = metric.intervals(resamples, seed)  # type: ignore[operator]  # RowValues, or made of them
            found |= {f"{name}_{part}" if part else name: [*both] for part, both in ends.items()}
    return found


def check_resamples(owner: object, resamples: int, seed: int) -> None:
    """Check the options ``bootstrap`` and ``bootstrap_seed``; ``owner`` as for `check_numbers`.

    Raises:
        InputError: ``resamples`` is neither 0 nor at least `FEWEST_RESAMPLES`, or ``seed`` is negative.
    """
    check_numbers(owner, {"bootstrap": resamples, "bootstrap_seed": seed}, least=0)
    if 0 < resamples < FEWEST_RESAMPLES:
        raise InputError(
            f"bootstrap is {resamples}; a 95 % interval needs at least {FEWEST_RESAMPLES} resamples, such as 1000. Use "
            "0 for no intervals."
        )


def _published(name: str, metric: Metric, value: Any) -> dict[str, Any]:
    """Return the entries of a metric's result in the aggregates."""
    reason = getattr(metric, "reason", "")
    if isinstance(value, Mapping):
        group = {str(part): _plain(f"{name}.{part}", number) for part, number in value.items()}
        if not getattr(metric, "flat", False):
            return finite({name: group})
        found = {f"{name}_{part}" if part else name: number for part, number in group.items()}
    else:
        found = {name: _plain(name, value)}
    if math.isinf(found.get(name, 0)):
        reason = "the number is infinite"
    found = finite(found)
    if found.get(name) is None:
        if getattr(metric, "optional", False) and not reason:
            return {}
        return found | ({f"{name}_absent": reason} if reason else {})
    return found


def _plain(name: str, value: Any) -> float | int:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, int | float):
        raise InputError(f"The metric {name} gives {number!r}; it must be a number, or a dictionary of numbers.")
    return number


def log_aggregates(
    benchmark: Benchmark,
    sets: Sets,
    settings: Mapping[str, Any],
    retain: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    bootstrap: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Compute every number of a log from its rows, including skipped ones; the rows are prepared in place.

    If ``bootstrap`` (resamples, seed) has resamples, the result includes the `intervals`. ``retain`` must be prepared.
    """
    benchmark.prepare(sets, settings)
    collection = metric_collection({**benchmark.metrics(settings, retain), **(metrics or {})})
    found = aggregates(collection, sets)
    return found | ({"intervals": intervals(collection, *bootstrap)} if bootstrap[0] else {})


def evaluation_document(
    benchmark: Benchmark, settings: Mapping[str, Any], sets: Any, found: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """Return an evaluation as it is stored, with its rows and aggregates; ``more`` are further parts by name."""
    return {
        "format": benchmark.format,
        "benchmark": class_path(type(benchmark)),
        "settings": settings,
        "provenance": {},
        "sets": sets,
        "aggregates": found,
        "skipped": {},
    } | more


def evaluation_file(name: str, provenance: Mapping[str, Any]) -> str:
    """Return the name of an evaluation's file without its ending: benchmark, epoch and step."""
    return f"{name}_epoch={provenance['epoch']:03d}_step={provenance['step']:05d}"


def retain_numbers(benchmark: Benchmark, log: EvaluationLog, settings: Mapping[str, Any]) -> dict[str, float]:
    """Compute a retain model's numbers by name, with the settings of the run that is compared with it."""
    numbers = flat_numbers(log_aggregates(benchmark, with_skipped(log.sets, log.skipped), settings))
    return numbers | dict(benchmark.retain_values)


def flat_numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Return all numbers of aggregates in one flat dictionary; those of a group ``{"a": {"p": 1}}`` become ``a_p``."""
    return {
        name: float(one)
        for name, one in _flat(found).items()
        if isinstance(one, int | float) and not isinstance(one, bool)
    }


def _flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of aggregates, those of groups side by side."""
    groups = {name: value if isinstance(value, Mapping) else {"": value} for name, value in found.items()}
    return {f"{name}_{part}" if part else name: one for name, parts in groups.items() for part, one in parts.items()}


def number_text(value: float, digits: int) -> str:
    """Format a number with ``digits`` decimals: at most two from 10 on, and two significant digits if it is tiny."""
    if 0 < abs(value) < 10.0 ** (1 - digits):
        return f"{value:.2g}"
    return f"{value:.{min(digits, 2) if abs(value) >= 10 else digits}f}"


def interval_text(ends: Sequence[float]) -> str:
    """Format an interval: ``[0.12, 0.34]``."""
    return f"[{ends[0]:.3g}, {ends[1]:.3g}]"


# Metrics that a user adds.


def user_metrics(chosen: Mapping[str, Any], taken: Mapping[str, Metric], sets: Iterable[RowSet]) -> dict[str, Metric]:
    """Build the metrics that a user adds to an evaluation.

    Args:
        chosen: Metrics by name: a class or its path, ``{class_path: ..., init_args: {...}}``, or a metric.
        taken: The benchmark's own metrics, whose names are taken.
        sets: The evaluation's sets.

    Raises:
        InputError: A name is taken, a class cannot be imported or built or is not a metric over evaluated rows, or a
            metric needs a set that the evaluation does not have.
    """
    found: dict[str, Metric] = {}
    published, known = {*metric_meanings(taken)}, list(dict.fromkeys(of.name for of in sets))
    for name, spec in chosen.items():
        if name in taken or not str(name).isidentifier() or hasattr(MetricCollection, name):
            raise InputError(f"metrics.{name}: the name is taken or is not an identifier; choose another.")
        metric = made(f"metrics.{name}", spec, Metric, "my_project.MyMetric", partial(_check_update, name))
        numbers = set(meanings(name, metric))
        if twice := published & numbers:
            raise InputError(f"metrics.{name}: another metric publishes {', '.join(sorted(twice))}; choose another.")
        missing = [of.name for of in metric.sets if of.name not in known] if isinstance(metric, RowValues) else []
        if missing:
            raise InputError(f"metrics.{name}: there is no set {', '.join(missing)}; there are {', '.join(known)}.")
        found[name] = metric
        published |= numbers
    return found


def _check_update(name: str, kind: type[Metric]) -> None:
    """Refuse a class that is not a metric over evaluated rows, before it is built."""
    taken = list(inspect.signature(kind.update).parameters)[1:]
    if taken != ["rows"]:
        raise InputError(
            f"metrics.{name}: the update of {class_path(kind)} takes {', '.join(taken) or 'nothing'}; a metric over "
            "evaluated rows takes one argument, `rows`, the rows by set name (see dipo_lightning.metrics.RowMean)."
        )


def metric_specs(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's metrics as plain values for an evaluation's settings: class paths and arguments.

    The arguments of a metric that was given as an object are not known: if its class takes any, `logged_metrics` leaves
    it out.
    """
    kinds = {name: class_path(spec) if isinstance(spec, type) else spec for name, spec in chosen.items()}
    return {name: _object_spec(type(spec)) if isinstance(spec, Metric) else spec for name, spec in kinds.items()}


def _object_spec(kind: type[Metric]) -> Any:
    kinds = [one.kind for one in inspect.signature(kind).parameters.values()]
    plain = all(one is inspect.Parameter.VAR_KEYWORD for one in kinds)
    return class_path(kind) if plain else {"object": class_path(kind)}


def logged_metrics(
    settings: Mapping[str, Any], taken: Mapping[str, Metric], sets: Iterable[RowSet]
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Build a log's user metrics; returns them, and the reasons why others cannot be built, both by name."""
    found: dict[str, Metric] = {}
    missing: dict[str, str] = {}
    for name, spec in (settings.get("metrics") or {}).items():
        if isinstance(spec, Mapping) and "object" in spec:
            missing[name] = (
                f"the log does not have the arguments of this object of {spec['object']}; name class and arguments in "
                "`metrics`, as class_path and init_args"
            )
            continue
        try:
            found |= user_metrics({name: spec}, taken, sets)
        except InputError as error:
            missing[name] = str(error)
    return found, missing


def class_path(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


# What numbers mean.


class Meanings(dict[str, Meaning]):
    """Meaning of each number by name; the label of an unknown number is its name."""

    def __missing__(self, name: str) -> Meaning:
        """Return a meaning that has only a label, made from the name."""
        return Meaning(name.replace("_", " "))


def metric_meanings(metrics: Mapping[str, Metric]) -> Meanings:
    """Return the meanings of the numbers of metrics."""
    found = Meanings()
    for name, metric in metrics.items():
        found[name] = Meaning(getattr(metric, "label", "") or name.replace("_", " "), getattr(metric, "meaning", ""))
        found |= meanings(name, metric)
    return found


def document_meanings(document: Mapping[str, Any]) -> Meanings:
    """Return the meanings of the numbers of an evaluation, as far as the classes of its metrics can be imported."""
    benchmark = benchmark_of(document)
    if benchmark is None:
        return Meanings()
    settings = document.get("settings") or {}
    try:
        own = benchmark.metrics(settings)
    except (InputError, KeyError):  # settings that this version does not know
        return Meanings()
    return metric_meanings({**own, **logged_metrics(settings, own, benchmark.sets_of(settings))[0]})
