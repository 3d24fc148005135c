"""The tables of a comparison: comparison.csv with every evaluation, and Markdown with a line per method."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dipo_lightning.comparison.results import COLUMNS, Row, Scale


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the lowest and the highest; with intervals the lowest and the highest end of those."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, rows: Iterable[Row], name: str) -> Spread | None:
        """Summarise a number of the rows that have it; None if there are none."""
        found = [(row[name], *row.get("intervals", {}).get(name, ())) for row in rows if row.get(name) is not None]
        if not found:
            return None
        ends = [value for values in found for value in values]
        return cls(sum(values[0] for values in found) / len(found), min(ends), max(ends))

    def text(self, digits: int) -> str:
        """Write it as ``mean [low, high]``; one value as itself."""
        if self.low == self.high:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def ties(self, other: Spread) -> bool:
        """Tell whether the difference of two means lies inside the range of one of them."""
        return self.low <= other.mean <= self.high or other.low <= self.mean <= other.high


@dataclass(frozen=True)
class Line:
    """A method in the table: the rows of its seeds at the epoch that is reported."""

    method: str
    settings: str
    rows: Sequence[Row]

    def spread(self, column: str) -> Spread | None:
        """Summarise a column over the seeds."""
        return Spread.of(self.rows, column)

    def keeps(self, share: float) -> bool:
        """Tell whether the mean of the utility kept is at least ``share``."""
        kept = self.spread("utility_kept")
        return kept is not None and kept.mean >= share

    def has_intervals(self, scale: Scale) -> bool:
        """Tell whether the number of forgetting was measured with its interval."""
        return any(scale.headline.forget in row.get("intervals", {}) for row in self.rows)

    def goodness(self, scale: Scale) -> float:
        """Return the mean number of forgetting so that a higher one is better; -inf where there is none."""
        spread = self.spread(scale.headline.forget)
        return scale.goodness(None if spread is None else spread.mean)


def ranked(lines: Iterable[Line], share: float, scale: Scale) -> list[Line]:
    """Sort: first those that keep ``share`` of the utility, each part by forgetting."""
    return sorted(lines, key=lambda line: (not line.keeps(share), -line.goodness(scale)))


def markdown_table(lines: Sequence[Line], scale: Scale) -> str:
    """Write the table."""
    others = scale.columns([row for line in lines for row in line.rows])
    columns = [scale.headline.forget, scale.headline.utility, "utility_kept", *others]
    labels = ["utility kept" if name == "utility_kept" else scale.label(name) for name in columns]
    header = f"| method | settings | seeds | epoch | {' | '.join(labels)} |\n{'|---' * (4 + len(labels))}|"
    return "\n".join([header, *(_markdown_line(line, columns, scale) for line in lines)])


def _markdown_line(line: Line, columns: Sequence[str], scale: Scale) -> str:
    spreads = [(line.spread(column), 2 if scale.meanings[column].unit == "log10" else 3) for column in columns]
    numbers = ["-" if spread is None else spread.text(digits) for spread, digits in spreads]
    epochs = sorted({row["epoch"] for row in line.rows if row["epoch"] is not None})
    epoch = ", ".join(map(str, epochs)) or "-"
    cells = [line.method, line.settings or "-", str(len(line.rows)), epoch, *numbers]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def verdict(lines: Sequence[Line], share: float, scale: Scale) -> str:
    """Say which method has forgotten best among those that keep ``share`` of the utility; several in a tie."""
    forgetting, utility = scale.label(scale.headline.forget), scale.label(scale.headline.utility)
    if lines and all(line.spread("utility_kept") is None for line in lines):
        return (
            f"Utility kept is unknown: no run was measured before its first step with its {utility} "
            f"(it needs {scale.headline.needs})."
        )
    keeping = [line for line in ranked(lines, share, scale) if line.keeps(share)]
    if not keeping:
        return f"No method keeps {share:g} of the target's {utility}."
    best = keeping[0].spread(scale.headline.forget)
    if best is None:
        return (
            f"The {forgetting} is unknown for those that keep {share:g} of the target's {utility}: it needs "
            f"{scale.headline.needs}."
        )
    winners = [line.method for line in keeping if line.goodness(scale) == keeping[0].goodness(scale)]
    alike = [
        line.method
        for line in keeping
        if line.method not in winners
        and line.has_intervals(scale)
        and (spread := line.spread(scale.headline.forget)) is not None
        and spread.ties(best)
    ]
    said = (
        f"Best in {forgetting} among those that keep at least {share:g} of the target's {utility}: "
        f"{' and '.join(winners)}, {best.mean:.2f} ({len(keeping)} of {len(lines)} keep it)."
    )
    if alike:
        said += f" A tie with {' and '.join(alike)}: the difference lies inside the intervals."
    return said


def write_csv(rows: Sequence[Row], path: Path, scale: Scale) -> Path:
    """Write every row, the compared numbers first and every other number after them; absent ones stay empty."""
    first = [*COLUMNS, scale.headline.forget, scale.headline.utility, "utility_kept"]
    rows = [_with_ends(row) for row in rows]
    others = sorted({name for row in rows for name in row} - set(first))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*first, *others], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _with_ends(row: Row) -> Row:
    """Return a row with the ends of its intervals as ``NAME_low`` and ``NAME_high`` in the place of `intervals`."""
    ends = {f"{name}_{end}": value for name, both in row.get("intervals", {}).items()
            for end, value in zip(("low", "high"), both, strict=True)}  # fmt: skip
    return {name: value for name, value in row.items() if name != "intervals"} | ends
