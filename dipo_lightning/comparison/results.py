"""Measurements of a run as flat rows, the two numbers that compare runs, and the choice of settings by them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_lightning.comparison.configs import Config, callback_class, callbacks
from dipo_lightning.comparison.plan import Selection, Settings
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.aggregates import (
    Meanings,
    document_meanings,
    flat_numbers,
    metric_meanings,
    number_text,
    retain_numbers,
)
from dipo_lightning.evaluation.benchmark import Benchmark, Headline, benchmark_of
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.evaluation.logs import only_run, read_log, refuse_without_evaluations
from dipo_lightning.report.runs import Document, read_documents

Row = dict[str, Any]
"""Values of one evaluation: method, settings, seed, epoch, step, utility_kept, and every number by its name.

`intervals` holds the lower and upper end of each number that was measured with an interval, `at` the epoch in words.
"""

Moment = tuple[int, int]
"""Number of epochs completed at an evaluation, and the evaluation's place among those with the same number."""

COLUMNS = ("method", "settings", "seed", "epoch", "step")
NO_NUMBERS = (*COLUMNS, "intervals", "at")


@dataclass(frozen=True)
class Scale:
    """The two numbers of a benchmark that runs are compared by, and the meanings of all its numbers."""

    benchmark: Benchmark
    meanings: Meanings

    @classmethod
    def of(cls, benchmark: Benchmark) -> Scale:
        """Return the scale of a benchmark."""
        return cls(benchmark, metric_meanings(benchmark.metrics({})))

    def learn(self, document: Document) -> None:
        """Add the meanings of the user's metrics in an evaluation."""
        for name, meaning in document_meanings(document).items():
            self.meanings.setdefault(name, meaning)

    @property
    def headline(self) -> Headline:
        """The benchmark's pair of numbers."""
        return self.benchmark.headline

    def label(self, name: str) -> str:
        """Return a number's name for a reader."""
        return self.meanings[name].label

    def phrase(self, name: str) -> str:
        """Return a number's name inside a sentence: ``probability of the forget rows``."""
        of, colon, what = self.label(name).partition(": ")
        return f"{what} of the {of} rows" if colon else of

    def text(self, name: str, value: float | Spread) -> str:
        """Write a number, or its spread over seeds, with the decimals that suit its unit."""
        digits = 2 if self.meanings[name].unit == "log10" else 3
        return value.text(digits) if isinstance(value, Spread) else number_text(value, digits)

    def goodness(self, forgetting: float | None) -> float:
        """Convert a number that measures forgetting so that higher is better; -inf if it is unknown."""
        meaning = self.meanings[self.headline.forget]
        if forgetting is None or math.isnan(forgetting):
            return -math.inf
        if meaning.near is not None:
            return -abs(forgetting - meaning.near)
        return -forgetting if meaning.higher_is_better is False else forgetting

    def forgetting(self, row: Row) -> float | None:
        """Return the number that measures forgetting in a row."""
        return row.get(self.headline.forget)

    def utility(self, row: Row) -> float | None:
        """Return a row's utility."""
        return row.get(self.headline.utility)

    def keeps(self, kept: float | None, share: float) -> bool:
        """Return whether a share of the utility is at least ``share``; always, where the benchmark has no utility."""
        return not self.headline.utility or (kept is not None and kept >= share)

    @property
    def compared(self) -> list[str]:
        """Names of the numbers that runs are compared by: forgetting and, where there is one, utility and its share."""
        utility = self.headline.utility
        return [self.headline.forget, *([utility, "utility_kept"] if utility else [])]

    def columns(self, rows: Sequence[Row]) -> list[str]:
        """Return the numbers that a table shows beside the pair: the benchmark's, and those that the user added."""
        known = {*NO_NUMBERS, "utility_kept", *metric_meanings(self.benchmark.metrics({}))}
        return [*self.headline.beside, *dict.fromkeys(name for row in rows for name in row if name not in known)]


def read_evaluations(folder: Path, name: str | None = None) -> tuple[Benchmark, list[Document]]:
    """Read a run's evaluations on one benchmark, the only one or the one called ``name``, in the order of their steps.

    Args:
        folder: Folder of the run; it, or one folder below it, holds ``evaluations``.
        name: The evaluation's name.

    Raises:
        InputError: No evaluations were found, they are of several runs or benchmarks, or a file is not an evaluation.
    """
    if (run := only_run(folder)) is None:
        refuse_without_evaluations(folder)
        raise InputError(f"{folder} holds the evaluations of 0 runs; name the folder of one run.")
    found = read_documents(run, name)
    if name is None:
        found = {key: documents for key, documents in found.items() if not _columns_beside(documents[-1])}
    if name is None and len(found) > 1:
        raise InputError(f"{run} has several evaluations; give `evaluation`: one of {', '.join(found)}.")
    documents = next(iter(found.values()), [])
    benchmark = benchmark_of(documents[-1]) if documents else None
    if benchmark is None:
        what = f"{name} evaluation" if name else "evaluation of a known benchmark"
        raise InputError(f"{run} has no {what}: the run has no such callback, or did not get to it.")
    return benchmark, documents


def evaluation_rows(
    documents: Sequence[Document], method: str | None = None, settings: str = "", seed: int | None = None
) -> list[Row]:
    """Return a row for each evaluation of a run; method and seed default to those in the evaluation."""
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
    rows.sort(key=lambda row: (row["epoch"] or 0, row["step"] or 0))
    lengths = {row["step"] / row["epoch"] if row["epoch"] else math.inf for row in rows if row["step"]}
    if len(lengths) > 1 or math.inf in lengths:  # not all of them were made at the end of an epoch
        for row in (row for row in rows if row["step"]):
            row["at"] = f"{row['epoch']} (step {row['step']})"
    return rows


def add_columns_beside(rows: Sequence[Row], folder: Path) -> None:
    """Add to each row the numbers of other evaluations at its step, such as scores of attacks."""
    for place in {path.parent.parent for path in folder.rglob("evaluations/*.json")}:
        for name, documents in read_documents(place).items():
            for document in documents:
                patterns = _columns_beside(document)
                numbers = flat_numbers(document["aggregates"]) if patterns else {}
                found = {
                    f"{name}_{key}": value
                    for key, value in numbers.items()
                    if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
                }
                for row in rows:
                    if row["step"] == document["provenance"].get("step"):
                        row.update(found)


def _columns_beside(document: Document) -> tuple[str, ...]:
    benchmark = benchmark_of(document)
    return benchmark.columns_beside if benchmark else ()


def by_moment(rows: Sequence[Row]) -> dict[Moment, Row]:
    """Return the rows of one run in order, without the one before the first step, which is the target's.

    In a run that is measured at the end of each epoch, the first evaluation after n completed epochs is the one at the
    end of epoch n; any others with the same n lie inside the next epoch.
    """
    found: dict[Moment, Row] = {}
    for row in rows:
        if row["step"]:
            epoch = row["epoch"] or 0
            found[epoch, sum(moment[0] == epoch for moment in found)] = row
    return found


def target_row(rows: Sequence[Row]) -> Row | None:
    """Return the row that was measured before the first step of a run; None without one."""
    return next((row for row in rows if row["step"] == 0), None)


def add_utility_kept(rows: Sequence[Row], target: Mapping[str, Any] | None, scale: Scale) -> None:
    """Add to each row the share of the target's utility that was kept, with its interval if the utility has one."""
    name = scale.headline.utility
    before = None if target is None else target.get(name)
    for row in rows:
        now = scale.utility(row)
        row["utility_kept"] = None if now is None or not before else now / before
        ends = (row.get("intervals") or {}).get(name)
        if before and ends:
            row["intervals"] = row["intervals"] | {"utility_kept": [end / before for end in ends]}


def no_share(targets: Iterable[Row | None], scale: Scale) -> str:
    """Return the reason why the utility kept is undefined, if a target's utility is 0; else an empty text."""
    if not any(row and scale.utility(row) == 0 for row in targets):
        return ""
    return (
        f"the target's {scale.phrase(scale.headline.utility)} is 0, of which no share can be kept. See its answers in "
        "the evaluations before the first step: does the model know the rows, and does the prompt fit it?"
    )


@dataclass(frozen=True)
class Spread:
    """A mean over seeds with the lowest and highest value, or the lowest and highest ends of their intervals.

    ``part`` is ``1 of 2 seeds`` if only one of two has the number, and empty if all have it.
    """

    mean: float
    low: float
    high: float
    part: str = ""

    @classmethod
    def of(cls, rows: Sequence[Row], name: str) -> Spread | None:
        """Summarise a number of the rows that have it; None if there are none."""
        found = [(row[name], *row.get("intervals", {}).get(name, ())) for row in rows if row.get(name) is not None]
        if not found:
            return None
        ends = [value for values in found for value in values]
        part = f"{len(found)} of {len(rows)} seeds" if len(found) < len(rows) else ""
        return cls(sum(values[0] for values in found) / len(found), min(ends), max(ends), part)

    def text(self, digits: int) -> str:
        """Write it as ``mean [low, high] (1 of 2 seeds)``; a single value and a mean over all seeds without these."""
        mean, low, high = (number_text(value, digits) for value in (self.mean, self.low, self.high))
        ends = "" if self.low == self.high else f" [{low}, {high}]"
        return f"{mean}{ends}" + (f" ({self.part})" if self.part else "")

    def holds(self, other: Spread) -> bool:
        """Return whether another mean lies inside this range."""
        return self.low <= other.mean <= self.high

    def overlaps(self, other: Spread) -> bool:
        """Return whether this range and another one have a value in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Candidate:
    """Settings that were tried on the selection seed, and their results there, first epoch to last."""

    method: str
    settings: Settings
    label: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Choice:
    """The reported settings, and the reported evaluation: its epoch (None: the last) and place, see `Moment`."""

    settings: Settings
    epoch: int | None = None
    place: int = 0

    @property
    def moment(self) -> Moment | None:
        """The reported evaluation; None for the last."""
        return None if self.epoch is None else (self.epoch, self.place)


def choose(candidates: Sequence[Candidate], selection: Selection, scale: Scale) -> Choice:
    """Apply the rule (see `Selection`) to the candidates of one method.

    Among those that tie with the best in forgetting, the one with the highest utility is taken, then the earlier
    candidate, then the earlier epoch. A `RunError` if there is no candidate, or none has both numbers that runs are
    compared by.
    """
    if not candidates:
        raise RunError("every run of its grid failed, so that nothing could be chosen")
    tried = [
        (candidate, row)
        for candidate in candidates
        for row in considered(candidate.rows, selection.epoch).values()
        if scale.forgetting(row) is not None and (row["utility_kept"] is not None or not scale.headline.utility)
    ]
    if not tried and (reason := no_share([target_row(one.rows) for one in candidates], scale)):
        raise RunError(f"nothing could be chosen: {reason}")
    if not tried:
        pair = f"both a {scale.phrase(scale.headline.forget)} and a {scale.phrase(scale.headline.utility)}"
        what = pair if scale.headline.utility else f"a {scale.phrase(scale.headline.forget)}"
        raise RunError(f"no candidate has {what} to choose by; the base's evaluation needs {scale.headline.needs}")
    keeping = [pair for pair in tried if scale.keeps(pair[1]["utility_kept"], selection.keep_utility)]
    if keeping:
        best = max(keeping, key=lambda pair: scale.goodness(scale.forgetting(pair[1])))
        tried = [pair for pair in keeping if ties(pair[1], best[1], scale)] if scale.headline.utility else [best]
    candidate, row = max(tried, key=lambda pair: float(pair[1]["utility_kept"] or 0))
    if selection.epoch == "last":
        return Choice(candidate.settings)
    return Choice(candidate.settings, *next(at for at, one in by_moment(candidate.rows).items() if one is row))


def ties(row: Row, best: Row, scale: Scale) -> bool:
    """Return whether two rows tie in forgetting: they print alike, or each is in the other's interval over rows."""
    name = scale.headline.forget
    spread, other = (Spread.of([one], name) for one in (row, best))
    if spread is None or other is None:
        return False
    alike = scale.text(name, spread.mean) == scale.text(name, other.mean)
    return alike or (spread.holds(other) and other.holds(spread))


def considered(rows: Sequence[Row], epoch: str) -> dict[Moment, Row]:
    """Return the rows of a run from which the rule may choose: the last, or all if ``epoch`` is ``any``."""
    found = by_moment(rows)
    return found if epoch == "any" else dict(list(found.items())[-1:])


def rule(selection: Selection, scale: Scale, same_data: bool = False) -> str:
    """Return the rule in words, for the report; ``same_data`` if the data it was applied on is reported on, too."""
    forgetting, utility = scale.phrase(scale.headline.forget), scale.phrase(scale.headline.utility)
    runs = f"the runs of seed {selection.seed}" + ("" if same_data else ", which are not reported")
    where = "at any evaluation, which is then reported too" if selection.epoch == "any" else "at the last epoch"
    if not scale.headline.utility:
        return f"Settings were chosen on {runs}: those of the candidate that is best in {forgetting} {where}."
    return (
        f"Settings were chosen on {runs}: among the candidates that keep at least {selection.keep_utility:g} of the "
        f"target's {utility}, the one that is best in {forgetting} {where}. If others tie with it, or no candidate "
        f"keeps that share, the one with the highest {utility} was taken."
    )


def retain_row(base: Config, seed: int, target: Row | None, scale: Scale) -> Row | None:
    """Return the row of the retain model of ``base``; None without a log, or if its log is unreadable or incomplete.

    The log is that of the callback that evaluates the benchmark. Its comparison with itself has the values that the
    benchmark defines, such as p = 1.
    """
    found = [
        callback["init_args"]
        for callback in callbacks(base.get("trainer") or {})
        if issubclass(kind := callback_class(callback["class_path"]), Evaluation) and kind.name == scale.benchmark.name
    ]
    options = next((options for options in found if options.get("retain_log")), None)
    if options is None:
        return None
    try:
        data, model = (base[part].get("init_args") or {} for part in ("data", "model"))
        named = data | {name: value for name, value in options.items() if value is not None}
        usual = scale.benchmark.hub_log(str(model.get("pretrained")), named)
        log = read_log(options["retain_log"], usual, scale.benchmark)
        chosen = {name: options[name] for name in scale.benchmark.score_options if name in options}
        if any(log.sets.values()) and not log.benchmark:  # another package's, whose own numbers have other names
            numbers = retain_numbers(scale.benchmark, log, {**log.settings, **chosen})
        else:  # the stored ones, which include those of the user's metrics
            numbers = flat_numbers(log.aggregates) | dict(scale.benchmark.retain_values)
    except InputError as error:
        print(f"The retain model is not shown: {error}")
        return None
    row: Row = {"method": "retain", "settings": "", "seed": seed, "epoch": None, "step": None}
    row |= numbers
    if row.get(scale.headline.utility or scale.headline.forget) is None:
        return None
    add_utility_kept([row], target, scale)
    return row
