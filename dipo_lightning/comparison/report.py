"""Results of a comparison: comparison.md, .csv and .png, and selection.csv if settings were chosen."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dipo_lightning.comparison.plan import Comparison
from dipo_lightning.comparison.results import (
    COLUMNS,
    Candidate,
    Choice,
    Moment,
    Row,
    Scale,
    Spread,
    by_moment,
    considered,
    no_share,
    rule,
    target_row,
)
from dipo_lightning.metrics.base import INTERVAL
from dipo_lightning.report.charts import Axes, Point, comparison_picture
from dipo_lightning.safety.display import table_in_markdown

_INSIDE = "the difference lies inside the interval of one of the two"
_SEEDS = "their ranges over seeds overlap"
_UNMEASURED = "With one seed and no intervals, nothing tells how much of a difference is chance."


@dataclass(frozen=True)
class Line:
    """Line of the table: one method, with the row of each seed at the reported epoch."""

    method: str
    settings: str
    rows: Sequence[Row]

    @property
    def key(self) -> tuple[str, str]:
        """Method and settings, which no two lines share."""
        return self.method, self.settings

    def spread(self, column: str) -> Spread | None:
        """Summarise a column over the seeds."""
        return Spread.of(self.rows, column)

    def keeps(self, share: float, scale: Scale) -> bool:
        """Return whether the utility kept, as a mean over seeds, is at least ``share``."""
        kept = self.spread("utility_kept")
        return scale.keeps(None if kept is None else kept.mean, share)

    def is_partial(self, scale: Scale) -> bool:
        """Return whether some of the seeds, but not all, lack one of the numbers that lines are compared by."""
        return any(spread.part for name in scale.compared if (spread := self.spread(name)))

    def has_intervals(self, scale: Scale) -> bool:
        """Return whether any seed has a bootstrap interval of the forgetting."""
        return any(scale.headline.forget in row.get("intervals", {}) for row in self.rows)

    def goodness(self, scale: Scale) -> float:
        """Return the mean forgetting, converted so that higher is better (`Scale.goodness`); -inf if it is unknown."""
        spread = self.spread(scale.headline.forget)
        return scale.goodness(None if spread is None else spread.mean)

    def text(self, column: str, scale: Scale) -> str:
        """Return the mean of a column as the table prints it; ``-`` without one."""
        spread = self.spread(column)
        return "-" if spread is None else scale.text(column, spread.mean)

    def surpasses(self, other: Line, scale: Scale) -> bool:
        """Return whether this line has forgotten more than another one, by a difference that the table shows."""
        alike = self.text(scale.headline.forget, scale) == other.text(scale.headline.forget, scale)
        return not alike and self.goodness(scale) > other.goodness(scale)

    def doubt(self, best: Line, scale: Scale) -> str:
        """Return why the best line may surpass this one by chance; empty if its forgetting is clearly better."""
        spread, other = (line.spread(scale.headline.forget) for line in (self, best))
        if spread is None or other is None:
            return ""
        if self.has_intervals(scale) or best.has_intervals(scale):
            return _INSIDE if spread.holds(other) or other.holds(spread) else ""
        if len(self.rows) == len(best.rows) == 1:
            return _UNMEASURED
        return _SEEDS if spread.overlaps(other) else ""


def names_of(lines: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return a different name for each line, given as (method, settings): its method, with the settings if need be."""
    lines, names = list(lines), dict[tuple[str, str], str]()
    for method, settings in lines:
        shared = sum(other == method for other, _ in lines) > 1
        name = f"{method} ({settings})" if shared and settings else method
        while name in names.values():
            name += "*"
        names[method, settings] = name
    return names


def ranked(lines: Iterable[Line], share: float, scale: Scale) -> list[Line]:
    """Sort by forgetting, best first, with the lines that keep ``share`` of the utility before all others.

    Those that lack a number on some seeds come last.
    """
    return sorted(lines, key=lambda line: (line.is_partial(scale), not line.keeps(share, scale), -line.goodness(scale)))


def markdown_table(lines: Sequence[Line], scale: Scale) -> str:
    """Return the table of the report in Markdown."""
    columns = shown_columns(lines, scale)
    head = ["method", "settings", "seeds", "epoch", *map(scale.label, columns)]
    return table_in_markdown(head, (_cells(line, columns, scale) for line in lines))


def shown_columns(lines: Sequence[Line], scale: Scale) -> list[str]:
    """Return the numbers of the table in their order."""
    others = scale.columns([row for line in lines for row in line.rows])
    return [*scale.compared, *others]


def explanations(lines: Sequence[Line], scale: Scale) -> str:
    """Return the meanings and desired directions of the table's numbers, as a list in Markdown."""
    found = [scale.meanings[name] for name in shown_columns(lines, scale) if name in scale.meanings]
    return "\n".join(
        f"- **{one.label}**{f' ({one.goal})' if one.goal else ''}{f': {one.words}' if one.words else ''}"
        for one in found
    )


def _cells(line: Line, columns: Sequence[str], scale: Scale) -> list[str]:
    spreads = [(column, line.spread(column)) for column in columns]
    numbers = ["-" if spread is None else scale.text(column, spread) for column, spread in spreads]
    epochs = dict.fromkeys(epoch_text(row) for row in sorted(line.rows, key=lambda row: row["epoch"] or 0))
    epoch = ", ".join(epochs) or "-"
    cells = [line.method, line.settings or "-", str(len(line.rows)), epoch, *numbers]
    return [cell.replace("|", "/") for cell in cells]


def epoch_text(row: Row) -> str:
    """Return the epoch of a row in words: ``2``, or ``2 (step 17)`` in a run that was measured inside epochs too."""
    return str(row.get("at") or ("-" if row["epoch"] is None else row["epoch"]))


def verdict(lines: Sequence[Line], share: float, scale: Scale, target: Line | None = None) -> str:
    """Return a sentence that names the best method, or a tie, among those that keep ``share`` of the utility.

    It says so if the best method has not forgotten more than the target, and which lines lack a number on some seeds
    and therefore take no part.
    """
    names = names_of(line.key for line in lines)
    partial = [names[line.key] for line in lines if line.is_partial(scale)]
    whole = [line for line in lines if not line.is_partial(scale)]
    said = [_judgement(whole, share, scale, target, names)] if whole or not partial else []
    if partial:
        said.append(f"Not judged, as a number is missing on some seeds: {' and '.join(partial)}.")
    return " ".join(said)


def _judgement(
    lines: Sequence[Line], share: float, scale: Scale, target: Line | None, names: Mapping[tuple[str, str], str]
) -> str:
    """Return the sentence of `verdict` on lines whose numbers are known on all seeds, or on none."""
    forgetting, utility = scale.phrase(scale.headline.forget), scale.phrase(scale.headline.utility)
    if scale.headline.utility and lines and all(line.spread("utility_kept") is None for line in lines):
        if target and (reason := no_share(target.rows, scale)):
            return f"Utility kept is unknown: {reason}"
        return (
            f"Utility kept is unknown: no run was measured before its first step with its {utility} "
            f"(it needs {scale.headline.needs})."
        )
    among = f"those that keep at least {share:g} of the target's {utility}" if scale.headline.utility else ""
    keeping = [line for line in ranked(lines, share, scale) if line.keeps(share, scale)]
    if not keeping:
        return f"No method keeps {share:g} of the target's {utility}{_nearest(lines, scale, names)}."
    best = keeping[0].spread(scale.headline.forget)
    if best is None:
        return f"The {forgetting} is unknown{among and f' for {among}'}: it needs {scale.headline.needs}."
    winners = [line for line in keeping if not keeping[0].surpasses(line, scale)]
    values = dict.fromkeys(line.text(scale.headline.forget, scale) for line in winners)
    said = (
        f"Best in {forgetting}{among and f' among {among}'}: {_listed(winners, names)}, {' and '.join(values)}"
        f"{among and f' ({len(keeping)} of {len(lines)} keep it)'}."
    )
    before = target and target.spread(scale.headline.forget)
    if target and before and not winners[0].surpasses(target, scale):
        said += f" That is no better than the target's {target.text(scale.headline.forget, scale)}."
    others = [line for line in keeping if line not in winners and line.spread(scale.headline.forget)]
    return " ".join([said, *_doubts(winners[0], others, scale, names)])


def _nearest(lines: Sequence[Line], scale: Scale, names: Mapping[tuple[str, str], str]) -> str:
    """Return the words that name the lines that keep most of the utility, where none keeps enough."""
    kept = [spread.mean for line in lines if (spread := line.spread("utility_kept"))]
    if not kept:
        return ""
    text = scale.text("utility_kept", max(kept))
    most = [line for line in lines if line.text("utility_kept", scale) == text]
    return f"; {_listed(most, names)} keep{'s' * (len(most) == 1)} most, {text}"


def _doubts(best: Line, others: Sequence[Line], scale: Scale, names: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the sentences on lines that the best one surpasses by a difference that may be chance."""
    doubts: dict[str, list[Line]] = {}
    for line in others:
        doubts.setdefault(line.doubt(best, scale), []).append(line)
    ties = [f"A tie with {_listed(doubts[why], names)}: {why}." for why in (_INSIDE, _SEEDS) if why in doubts]
    return [*ties, *([_UNMEASURED] if _UNMEASURED in doubts else [])]


def _listed(lines: Sequence[Line], names: Mapping[tuple[str, str], str]) -> str:
    return " and ".join(names[line.key] for line in lines)


def write_csv(rows: Sequence[Row], path: Path, scale: Scale) -> Path:
    """Write all rows with the compared numbers in the first columns; cells of absent numbers stay empty."""
    first = [*COLUMNS, *scale.compared]
    rows = [_with_ends(row) for row in rows]
    others = sorted({name for row in rows for name in row} - {*first, "utility_kept"})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*first, *others], restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _with_ends(row: Row) -> Row:
    """Return a row with the ends of its intervals as ``NAME_low`` and ``NAME_high``, and without the epoch in words."""
    ends = {f"{name}_{end}": value for name, both in row.get("intervals", {}).items()
            for end, value in zip(("low", "high"), both, strict=True)}  # fmt: skip
    return {name: value for name, value in row.items() if name not in ("intervals", "at")} | ends


@dataclass(frozen=True)
class Failure:
    """Failed run, with its last message and the log file of all messages."""

    title: str
    reason: str
    log: Path | None = None

    def __str__(self) -> str:
        """Return the failure as one line."""
        return f"{self.title}: {self.reason}" + (f" ({self.log})" if self.log else "")


@dataclass
class Findings:
    """Measurements of a comparison.

    Attributes:
        scale: The two numbers that runs are compared by.
        runs: Reported runs by (method, settings), each with its rows.
        moments: Chosen evaluations to report by (method, settings); a run without one is reported at its last.
        candidates: Results on the selection seed.
        choices: Chosen settings by method.
        retain: Rows of the retain models, one per seed.
        failures: Failed runs.
        same_data: Whether settings were chosen on data that is reported on.
    """

    scale: Scale
    runs: dict[tuple[str, str], list[list[Row]]] = field(default_factory=dict)
    moments: dict[tuple[str, str], Moment | None] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)
    retain: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    same_data: bool = False

    @property
    def targets(self) -> list[Row]:
        """The rows of the models before unlearning, one per seed: all runs of a seed start from the same model."""
        rows = [target_row(rows) for runs in self.runs.values() for rows in runs]
        return list({row["seed"]: row | {"method": "target", "settings": ""} for row in rows if row}.values())

    def lines(self) -> list[Line]:
        """Return the lines of the table."""
        return [
            Line(method, settings, [row for rows in runs if (row := self.reported(rows, (method, settings)))])
            for (method, settings), runs in self.runs.items()
        ]

    def reported(self, rows: Sequence[Row], key: tuple[str, str]) -> Row | None:
        """Return the row of a run that is reported: the chosen one, or else the last."""
        found = by_moment(rows)
        chosen = self.moments.get(key)
        return found[chosen] if chosen in found else next(reversed(found.values()), None)


def write_report(comparison: Comparison, findings: Findings) -> str:
    """Write all files of the report into ``comparison.output``, and return its Markdown."""
    folder = Path(comparison.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("selection.csv", "comparison.png"):  # possibly of an earlier call
        (folder / name).unlink(missing_ok=True)
    scale = findings.scale
    rows = [row for runs in findings.runs.values() for run in runs for row in run]
    write_csv([*findings.targets, *findings.retain, *rows], folder / "comparison.csv", scale)
    if findings.candidates:
        tried = [row for candidate in findings.candidates for row in candidate.rows]
        write_csv(tried, folder / "selection.csv", scale)
    drawn = trajectories(findings)
    if any(drawn.values()):
        marks = [point_of(runs, scale) for runs in (findings.targets, findings.retain)]
        keep = comparison.selection.keep_utility
        axes = Axes(
            scale.phrase(scale.headline.utility),
            scale.phrase(scale.headline.forget),
            scale.meanings[scale.headline.forget].wanted,
            scale.headline.lowest,
            scale.headline.mark,
        )
        comparison_picture(drawn, folder / "comparison.png", axes, target=marks[0], retain=marks[1], keep=keep)
    text = markdown(comparison, findings, picture=any(drawn.values()))
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    return text


def markdown(comparison: Comparison, findings: Findings, picture: bool) -> str:
    """Return the report as Markdown."""
    share, lines, scale = comparison.selection.keep_utility, findings.lines(), findings.scale
    measured = any(row.get("intervals") for line in lines for row in line.rows)
    ends = f" end of the {INTERVAL:.0%} intervals over rows (bootstrap)" if measured else ""
    kept = "; utility kept is the share of the target's on the same seed" if scale.headline.utility else ""
    marked = [("target", findings.targets), ("retain", findings.retain)]
    marks = [Line(name, "", rows) for name, rows in marked if rows]
    target = next((line for line in marks if line.method == "target"), None)
    table = [*ranked(lines, share, scale), *marks]
    parts = [
        "# Comparison",
        verdict(lines, share, scale, target) if lines else "No run has a result to report.",
        *([markdown_table(table, scale)] if table else []),
        f"{source_text(comparison)} Numbers are means over seeds with [lowest, highest]"
        f"{ends}{kept}. Every evaluation of every run is in `comparison.csv`.",
        *([explanations(table, scale)] if table else []),
    ]
    if picture:
        parts.append("![Forgetting against utility](comparison.png)")
    if findings.candidates:
        parts += ["## How settings were chosen", selection_text(comparison, findings)]
    if findings.failures:
        parts += ["## Runs that failed", "\n".join(f"- {failure}" for failure in findings.failures)]
    return "\n\n".join(parts) + "\n"


def source_text(comparison: Comparison) -> str:
    """Return where the runs come from: base and seeds of the methods, and the folders of finished runs."""
    base = f"Base `{comparison.base}`, seeds {', '.join(map(str, comparison.seeds))}"
    given = f"finished runs from {', '.join(f'`{run.path}`' for run in comparison.runs)}"
    parts = [*([base] if comparison.methods else []), *([given] if comparison.runs else [])]
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def selection_text(comparison: Comparison, findings: Findings) -> str:
    """Return the rule in words and a table of the candidates."""
    selection = comparison.selection
    scale = findings.scale
    text = rule(selection, scale, findings.same_data)
    if findings.same_data:
        text += " The same data is reported on: read the numbers of methods with a larger grid with that in mind."
    columns = [name for name in scale.compared if name != scale.headline.utility]
    head = ["method", "settings", "epoch", *map(scale.label, columns), "chosen"]
    lines = []
    for candidate in findings.candidates:
        choice = findings.choices.get(candidate.method)
        for moment, row in considered(candidate.rows, selection.epoch).items():
            chosen = choice is not None and choice.settings == candidate.settings and choice.moment in (None, moment)
            values = ((name, row.get(name)) for name in columns)
            numbers = ["-" if value is None else scale.text(name, value) for name, value in values]
            where = [candidate.method, candidate.label or "-", epoch_text(row)]
            lines.append([*where, *numbers, "yes" if chosen else ""])
    return f"{text}\n\n{table_in_markdown(head, lines)}"


def trajectories(findings: Findings) -> Mapping[str, list[Point]]:
    """Return the points of each method, evaluation by evaluation, over its seeds."""
    names = names_of(findings.runs)
    drawn: dict[str, list[Point]] = {}
    for key, runs in findings.runs.items():
        reported = [id(findings.reported(rows, key)) for rows in runs]
        seeds = [by_moment(rows) for rows in runs]
        points = []
        for moment in sorted({moment for rows in seeds for moment in rows}):
            rows = [run[moment] for run in seeds if moment in run]
            if point := point_of(rows, findings.scale, reported=any(id(row) in reported for row in rows)):
                points.append(point)
        drawn[names[key]] = points
    return drawn


def point_of(rows: Sequence[Row], scale: Scale, reported: bool = False) -> Point | None:
    """Return the point of one evaluation from the rows of its seeds; None where a number is missing."""
    utility, quality = (Spread.of(rows, name) for name in (scale.headline.utility, scale.headline.forget))
    if utility is None or quality is None:
        return None
    ranges = (utility.low, utility.high), (quality.low, quality.high)
    return Point(utility.mean, quality.mean, *ranges, reported=reported)
