"""Measurements of a run: its evaluations as flat rows, and the two numbers that runs are compared by."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import Meanings, flat_numbers, metric_meanings
from dipo_lightning.evaluation.benchmark import Benchmark, Headline, find_benchmark
from dipo_lightning.report.run_folder import Document, read_documents

Row = dict[str, Any]
"""method, settings, seed, epoch, step, utility_kept, and every number of an evaluation by its name.

`intervals` holds the lower and upper end of each number that was measured with one.
"""

COLUMNS = ("method", "settings", "seed", "epoch", "step")
NO_NUMBERS = (*COLUMNS, "intervals")


@dataclass(frozen=True)
class Scale:
    """The two numbers of a benchmark that runs are compared by.

    Attributes:
        benchmark: Whose they are.
        meanings: Of all its numbers.
    """

    benchmark: Benchmark
    meanings: Meanings

    @classmethod
    def of(cls, benchmark: Benchmark) -> Scale:
        """Return the scale of a benchmark."""
        return cls(benchmark, metric_meanings(benchmark.metrics({})))

    @property
    def headline(self) -> Headline:
        """The benchmark's pair of numbers."""
        return self.benchmark.headline

    def label(self, name: str) -> str:
        """Return a number's name for a reader."""
        return self.meanings[name].label

    def goodness(self, forgetting: float | None) -> float:
        """Return the number of forgetting so that a higher one is better; -inf where there is none."""
        meaning = self.meanings[self.headline.forget]
        if forgetting is None or math.isnan(forgetting):
            return -math.inf
        if meaning.near is not None:
            return -abs(forgetting - meaning.near)
        return -forgetting if meaning.higher_is_better is False else forgetting

    def forgetting(self, row: Row) -> float | None:
        """Return a row's number of forgetting."""
        return row.get(self.headline.forget)

    def utility(self, row: Row) -> float | None:
        """Return a row's utility."""
        return row.get(self.headline.utility)

    def columns(self, rows: Sequence[Row]) -> list[str]:
        """Return the numbers that a table shows beside the pair: the benchmark's, and those that the user added."""
        known = {*NO_NUMBERS, "utility_kept", *self.meanings}
        return [*self.headline.beside, *dict.fromkeys(name for row in rows for name in row if name not in known)]


def read_evaluations(folder: Path, name: str | None = None) -> tuple[Benchmark, list[Document]]:
    """Read a run's evaluations on one benchmark, in the order of their steps.

    Args:
        folder: Of the run; it, or one folder below it, holds ``evaluations``.
        name: The evaluation's name; None for the only one there is.

    Raises:
        InputError: There are none, or more than one run's or of more than one benchmark, or one is no evaluation.
    """
    places = [folder / "evaluations"] if (folder / "evaluations").is_dir() else sorted(folder.rglob("evaluations"))
    if len(places) != 1:
        raise InputError(f"{folder} holds the evaluations of {len(places)} runs; name the folder of one run.")
    found = read_documents(places[0].parent, name)
    if name is None:
        found = {key: documents for key, documents in found.items() if not _columns_beside(documents[-1])}
    if name is None and len(found) > 1:
        raise InputError(f"{places[0]} has several evaluations; give `evaluation`: one of {', '.join(found)}.")
    documents = next(iter(found.values()), [])
    benchmark = (
        find_benchmark(documents[-1].get("format", ""), documents[-1].get("benchmark", "")) if documents else None
    )
    if benchmark is None:
        what = f"{name} evaluation" if name else "evaluation of a known benchmark"
        raise InputError(f"{places[0]} has no {what}: the run has no such callback, or did not get to it.")
    return benchmark, documents


def evaluation_rows(
    documents: Sequence[Document], method: str | None = None, settings: str = "", seed: int | None = None
) -> list[Row]:
    """Return a row for each evaluation of a run.

    Args:
        documents: Of one benchmark.
        method: The method's name; None takes the class that the evaluation names.
        settings: The settings in words.
        seed: The run's seed; None takes the one that the evaluation names.
    """
    rows = [
        {
            "method": method or str(document["provenance"].get("method", "run")).removesuffix("Module"),
            "settings": settings,
            "seed": document["provenance"].get("seed") if seed is None else seed,
            "epoch": document["provenance"].get("epoch"),
            "step": document["provenance"].get("step"),
            **flat_numbers(document["aggregates"]),
            "intervals": document.get("intervals") or {},
        }
        for document in documents
    ]
    return sorted(rows, key=lambda row: (row["epoch"] or 0, row["step"] or 0))


def add_columns_beside(rows: Sequence[Row], folder: Path) -> None:
    """Give each row the numbers that other evaluations of its step add to a comparison, such as scores of attacks.

    Args:
        rows: Of one run.
        folder: Of the run; it, or one folder below it, holds ``evaluations``.
    """
    for place in {path.parent.parent for path in folder.rglob("evaluations/*.json")}:
        for name, documents in read_documents(place).items():
            for document in documents:
                patterns = _columns_beside(document)
                numbers = flat_numbers(document["aggregates"]) if patterns else {}
                found = {f"{name}_{key}": value for key, value in numbers.items() if _matches(key, patterns)}
                for row in rows:
                    if row["step"] == document["provenance"].get("step"):
                        row.update(found)


def _columns_beside(document: Document) -> tuple[str, ...]:
    benchmark = find_benchmark(document.get("format", ""), document.get("benchmark", ""))
    return benchmark.columns_beside if benchmark else ()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def by_epoch(rows: Sequence[Row]) -> dict[int, Row]:
    """Return the last row of each epoch of one run, in their order; without the first, epoch 0, the target's."""
    return {row["epoch"]: row for row in rows if row["step"]}


def target_row(rows: Sequence[Row]) -> Row | None:
    """Return the row of one run that was measured before its first step, if there is one."""
    return next((row for row in rows if row["step"] == 0), None)


def add_utility_kept(rows: Sequence[Row], target: Mapping[str, Any] | None, scale: Scale) -> None:
    """Give each row the share of the target's utility that is left."""
    before = None if target is None else target.get(scale.headline.utility)
    for row in rows:
        now = scale.utility(row)
        row["utility_kept"] = None if now is None or not before else now / before
