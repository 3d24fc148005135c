"""Metrics over evaluated rows, exact on any number of ranks: their state, and their descriptions for readers.

A metric receives rows by the name of their set, ``update({"forget": [row, ...], ...})``, and keeps its numbers from
its own sets only. Forget quality and AUCs need every row's number, so each number is stored with its row's index, and
a row counts once however often and on whichever rank it was seen.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]
"""Evaluated rows by the name of their set."""

Table = dict[str, Tensor]
"""Columns of a metric's rows, 1-D tensors of one length."""

INTERVAL = 0.95
"""Share of the resampled numbers inside an interval."""


@dataclass(frozen=True)
class RowSet:
    """A set of evaluated rows.

    Attributes:
        name: Its name in logs, such as ``forget``.
        title: Heading over its rows, for a reader.
        about: Phrase for its rows that fits after "on".
        forget: Whether the model is to forget them (True) or to keep them (False); None for neither.
        required: Fields that each of its rows has in a log; a field is null if the row could not be scored.
        drawn_as: Name that sets of the same rows share, so that a bootstrap draws the same rows from each; empty for
            the set's own name.
    """

    name: str
    title: str = ""
    about: str = ""
    forget: bool | None = None
    required: tuple[str, ...] = ()
    drawn_as: str = ""


@dataclass(frozen=True)
class Meaning:
    """Meaning of a number, for a reader.

    Attributes:
        label: Name of the number.
        words: Its definition in plain words.
        unit: ``nats``, ``bits``, ``%``, ``log10``; empty for a number without one.
        higher_is_better: Desired direction; None for neither, or if `near` gives the best value.
        near: The best value, for a number that has one (PrivLeak: 0).
        floor: Whether the goal is the level of a model that never knew the rows; beyond it, too much is forgotten.
    """

    label: str
    words: str = ""
    unit: str = ""
    higher_is_better: bool | None = None
    near: float | None = None
    floor: bool = False

    @property
    def unit_behind(self) -> str:
        """The unit in brackets, to stand behind the label: `` (nats)``; empty without one."""
        return f" ({self.unit})" if self.unit else ""

    @property
    def wanted(self) -> str:
        """The desired direction in words; empty if there is none."""
        if self.near is not None:
            return f"best near {self.near:g}"
        return {True: "higher is better", False: "lower is better", None: ""}[self.higher_is_better]

    @property
    def goal(self) -> str:
        """The desired direction, with its limit if beyond it too much is forgotten."""
        limit = ", to the level of a model that never knew the rows" if self.floor and self.wanted else ""
        return self.wanted + limit

    def better(self, first: float, second: float) -> bool | None:
        """Return whether ``first`` is better than ``second``; None if no direction is desired."""
        if self.near is not None:
            return abs(first - self.near) < abs(second - self.near)
        return None if self.higher_is_better is None else (first > second) == self.higher_is_better


class RowValues(Metric):
    """Base of metrics that keep numbers of rows, each row once.

    A subclass names its columns and implements `values` and `compute` (on `scored`). All states, the index included,
    are 1-D float64 (float32 on mps): ranks gather states of different lengths, which needs a single dtype. If a row
    was seen twice with different values, the smallest counts, so that neither the order nor the sharding of the rows
    affects the result.

    ``compute`` returns a scalar, NaN if it cannot be computed, or a dictionary of scalars described by `parts`.

    Attributes:
        label: Name for a reader; with `names_set`, the set's name is put before it.
        meaning: Definition in plain words.
        unit: See `Meaning`.
        near: See `Meaning`.
        remembers: 1 if a higher number means that more of the rows is remembered, -1 if it means less; the desired
            direction then depends on whether the set is to be forgotten. 0 leaves it to ``higher_is_better``.
        parts: Meaning of each entry of a dictionary; ``""`` is the metric's own name.
        flat: Whether the entries of a dictionary are published side by side, ``NAME_PART``, not in a group.
        needs_retain: The entries (``""`` for a scalar) that need a retain model.
        names_set: Whether the published label and meaning name the set, for a metric on a single set.
        reason: Reason why `compute` gave no number; empty if it gave one.
        unscored: Indices of the rows without a number by set, after `compute`.

    Args:
        *sets: The sets whose rows count.
        optional: Leave a number out of the results if no row provides it; else it is published as null.
        lists_unscored: List the rows without a number in the results.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better: bool | None = None

    columns: ClassVar[tuple[str, ...]] = ("number",)
    label: str = ""
    meaning: str = ""
    unit: str = ""
    near: float | None = None
    remembers: ClassVar[int] = 0
    parts: ClassVar[Mapping[str, Meaning]] = {}
    flat: ClassVar[bool] = False
    needs_retain: ClassVar[tuple[str, ...]] = ()
    names_set: ClassVar[bool] = False

    def __init__(
        self, *sets: RowSet | str, optional: bool = False, lists_unscored: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**{"distributed_available_fn": _several_processes, **kwargs})
        self.sets = [one if isinstance(one, RowSet) else RowSet(one) for one in sets]
        self.optional, self.lists_unscored = optional, lists_unscored
        self.reason = ""
        self.unscored: dict[str, list[int]] = {}
        self._resample: Table | None = None
        for name in self._names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the number of a row of the set ``of`` for each column; None or NaN if it has none."""
        raise TypeError(f"{type(self).__name__} must define values()")

    def measured(self, row: Row, source: Row) -> Mapping[str, float | None]:
        """Return further numbers of a row, computed from its measurements and from the row as it was read.

        Called once for each row of `sets` after it was measured, identically on every process; the log keeps the
        numbers with the row. Not needed for a metric of numbers that the row already has.

        Args:
            row: The row as it was measured, with the model's own answer, say.
            source: The row as it was read, with its paraphrased and wrong answers, say.
        """
        return {}

    def update(self, rows: Rows) -> None:
        """Add evaluated rows.

        Args:
            rows: Rows by the name of their set; other sets than the metric's are ignored.

        Raises:
            ValueError: The index of a row is negative.
        """
        found = [
            (group, row["index"], *map(_number, self.values(row, of)))
            for group, of in enumerate(self.sets)
            for row in rows.get(of.name, ())
        ]
        if any(index < 0 for _, index, *_ in found):
            raise ValueError(f"{type(self).__name__}: the index of a row cannot be negative")
        if found:
            columns = torch.tensor(found, dtype=torch.float64).unbind(1)
            for name, values in zip(self._names, columns, strict=True):
                getattr(self, name).append(values.to(self.device, self._float))

    def intervals(self, resamples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap of `compute`: each set's rows are resampled with replacement, to the same number.

        Collective, and the same on every process. Left out are numbers that no resample can change (counts, which are
        integers), and those that cannot be computed from the rows themselves.

        Args:
            resamples: Number of resamples, 1 or more.
            seed: Seed of the resamples. With one seed, a set's resamples are the same for every metric and every model,
                and for every set that is `drawn_as` it.

        Returns:
            Lower and upper end of the interval with `INTERVAL` of the numbers, by their name in `parts`; ``""`` for a
            scalar.
        """
        return bootstrap([self], lambda: type(self).compute(self), resamples, seed)

    def take(self, drawn: Table | None) -> None:
        """Compute on resampled rows from now on; None returns to the rows seen."""
        self._resample = drawn

    def resamples(self, resamples: int, seed: int) -> Iterator[Table]:
        """Yield tables of rows drawn with replacement within each set, as many as it has, each with its index."""
        table = self.table()
        sizes = [int((table["group"] == group).sum()) for group in range(len(self.sets))]
        draws = [np.random.default_rng([seed, zlib.crc32((of.drawn_as or of.name).encode())]) for of in self.sets]
        starts = np.cumsum([0, *sizes[:-1]])
        for _ in range(resamples):
            rows = [
                start + draw.integers(0, size, size)
                for start, size, draw in zip(starts, sizes, draws, strict=True)
                if size
            ]
            places = torch.from_numpy(np.concatenate(rows or [np.empty(0, np.int64)])).to(table["index"].device)
            yield {name: values[places] for name, values in table.items()}

    def table(self) -> Table:
        """Return ``group``, ``index`` and the columns of the rows seen so far, each row once, ordered by both.

        Inside `compute` these are the rows of all ranks; inside `intervals`, the resampled ones.

        Returns:
            1-D float tensors of one length; ``group`` is the position of the row's set in `sets`.
        """
        if self._resample is not None:
            return self._resample
        table = {name: self._state(name) for name in self._names}
        order = torch.arange(table["index"].numel(), device=table["index"].device)
        for name in reversed(self._names):  # a lexicographic sort; NaN comes last, so a number wins over it
            order = order[torch.argsort(table[name][order], stable=True)]
        table = {name: values[order] for name, values in table.items()}
        first = torch.ones_like(order, dtype=torch.bool)
        if first.numel() > 1:
            first[1:] = torch.stack([table[name][1:] != table[name][:-1] for name in ("group", "index")]).any(dim=0)
        return {name: values[first] for name, values in table.items()}

    def scored(self, *columns: str) -> Table:
        """Return the `table` without the rows that lack a number, and list those in `unscored`.

        Args:
            *columns: The numbers that a row needs; all of them by default.
        """
        table = self.table()
        bad = torch.stack([table[name].isnan() for name in columns or self.columns]).any(dim=0)
        self.unscored = {}
        for group, index in zip(table["group"][bad].tolist(), table["index"][bad].tolist(), strict=True):
            self.unscored.setdefault(self.sets[int(group)].name, []).append(int(index))
        return {name: values[~bad] for name, values in table.items()}

    def reset(self) -> None:
        """Drop all rows."""
        super().reset()
        self.unscored, self.reason = {}, ""

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the rows of another metric of the same class, or of its state.

        Counts as an update: otherwise torchmetrics would keep returning the earlier value, or warn if there was none.
        """
        super().merge_state(incoming_state)
        self._computed = None
        self._update_count += 1

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks.

        A rank without rows takes part with empty tensors of the right dtype; torchmetrics would use its own default.
        """
        for name in self._names:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [self._state(name)])
        super().sync(*args, **kwargs)

    @property
    def resampling(self) -> bool:
        """True while `compute` runs on rows resampled by `intervals`."""
        return self._resample is not None

    @property
    def _names(self) -> tuple[str, ...]:
        return ("group", "index", *self.columns)

    @property
    def _float(self) -> torch.dtype:
        """Dtype of the states, which represents index and value exactly."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def _state(self, name: str) -> Tensor:
        """Return a state as one tensor, whether it is still a list or was gathered."""
        state = getattr(self, name)
        if isinstance(state, Tensor):
            return state
        return torch.cat(state) if state else torch.empty(0, dtype=self._float, device=self.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        """Move the states with the module, but never change their dtype: bfloat16 cannot hold every index above 256."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self._float, device=self.device)

    def _nothing(self, reason: str = "") -> Tensor:
        """Return NaN, and record the reason."""
        self.reason = reason
        return self._scalar(math.nan)


def _several_processes() -> bool:
    """Return whether there are states to gather; in a group of one process, NCCL would only refuse CPU tensors."""
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    return grouped and torch.distributed.get_world_size() > 1


class RowMean(RowValues):
    """Mean over rows of one number per row.

    A subclass names the row's `field`, or computes the number in `value`.
    """

    field: ClassVar[str] = ""
    names_set = True

    def value(self, row: Row) -> float | None:
        """Return the number of a row; None if it has none."""
        return row.get(self.field)

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the row's one number."""
        return (self.value(row),)

    def compute(self) -> Tensor:
        """Mean over the rows that have the number; NaN if none has."""
        return mean_or_nan(self.scored()["number"])


def bootstrap(
    metrics: Sequence[RowValues],
    compute: Callable[[], Tensor | Mapping[str, Tensor]],
    resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap of numbers computed from several metrics, on resampled rows; see `RowValues.intervals`.

    Args:
        metrics: The metrics, with their rows.
        compute: Computes the number or numbers, without synchronising.
        resamples: Number of resamples, 1 or more.
        seed: Seed of the resamples.
    """
    found: dict[str, list[float]] = {}
    kept = [(metric.reason, metric.unscored) for metric in metrics]
    with ExitStack() as stack:
        for metric in metrics:
            stack.enter_context(metric.sync_context(dist_sync_fn=metric.dist_sync_fn))
        try:
            known = _finite(compute())
            for tables in zip(*(metric.resamples(resamples, seed) for metric in metrics), strict=True):
                if not known:
                    break
                for metric, drawn in zip(metrics, tables, strict=True):
                    metric.take(drawn)
                for part, number in _finite(compute()).items():
                    if part in known:
                        found.setdefault(part, []).append(number)
        finally:
            for metric, (reason, unscored) in zip(metrics, kept, strict=True):
                metric.take(None)
                metric.reason, metric.unscored = reason, unscored
    ends = ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2)
    quantiles = {part: np.quantile(numbers, ends) for part, numbers in found.items()}
    return {part: (float(low), float(high)) for part, (low, high) in quantiles.items()}


def _finite(value: Tensor | Mapping[str, Tensor]) -> dict[str, float]:
    """Return the finite floating-point numbers among a result's, by part."""
    parts = value if isinstance(value, Mapping) else {"": value}
    return {part: one.item() for part, one in parts.items() if one.is_floating_point() and bool(one.isfinite())}


def mean_or_nan(values: Tensor) -> Tensor:
    """Mean of a column; NaN without rows.

    Args:
        values: (n,) float.

    Returns:
        Scalar of the same dtype.
    """
    return values.mean() if values.numel() else values.new_tensor(math.nan)


def first_clause(meaning: str) -> str:
    """Return the first clause of a metric's meaning, up to a colon or a full stop, for a place with little room."""
    return re.split(r"[:.]", meaning, maxsplit=1)[0] + "."


def meanings(name: str, metric: Metric) -> dict[str, Meaning]:
    """Return the meaning of every number that a metric publishes, by the number's name.

    Args:
        name: The metric's name in its collection.
        metric: Any torchmetrics metric; one without a label gets its name as the label.
    """
    parts: Mapping[str, Meaning] = getattr(metric, "parts", {})
    if parts:
        return {f"{name}_{part}" if part else name: meaning for part, meaning in parts.items()}
    label = getattr(metric, "label", "") or name.replace("_", " ")
    words, unit = getattr(metric, "meaning", ""), getattr(metric, "unit", "")
    near, higher, floor = getattr(metric, "near", None), metric.higher_is_better, False
    if isinstance(metric, RowValues) and len(metric.sets) == 1:
        [of] = metric.sets
        if metric.names_set:
            label = f"{of.name.replace('_', ' ')}: {label}"
            words = f"On {of.about}. {words}" if of.about else words
        if metric.remembers and of.forget is not None:
            higher, floor = (metric.remembers > 0) != of.forget, of.forget
    return {name: Meaning(label, words, unit, higher, near, floor)}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
