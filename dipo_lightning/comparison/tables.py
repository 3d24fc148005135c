"""The tables of a comparison: comparison.csv with every evaluation, and Markdown with a line a method."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dipo_lightning.comparison.results import COLUMNS, Row

HEADER = (
    "| method | settings | seeds | epoch | forget quality, log10 p | model utility | utility kept "
    "| forget probability |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, and the lowest and the highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Summarise the values that are there; None if there are none."""
        found = [value for value in values if value is not None]
        return cls(sum(found) / len(found), min(found), max(found)) if found else None

    def text(self, digits: int) -> str:
        """Write it as ``mean [low, high]``; one value as itself."""
        if self.low == self.high:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True)
class Line:
    """A method in the table: the rows of its seeds at the epoch that is reported."""

    method: str
    settings: str
    rows: Sequence[Row]

    def spread(self, column: str) -> Spread | None:
        """Summarise a column over the seeds."""
        return Spread.of(row.get(column) for row in self.rows)

    def keeps(self, share: float) -> bool:
        """Whether the mean of the utility kept is at least ``share``."""
        kept = self.spread("utility_kept")
        return kept is not None and kept.mean >= share

    @property
    def quality(self) -> float:
        """The mean log10 p, to sort by."""
        spread = self.spread("log10_p")
        return float("-inf") if spread is None else spread.mean


def ranked(lines: Iterable[Line], share: float) -> list[Line]:
    """Sort: first those that keep ``share`` of the utility, each part by forget quality."""
    return sorted(lines, key=lambda line: (not line.keeps(share), -line.quality))


def markdown_table(lines: Sequence[Line]) -> str:
    """Write the table."""
    return "\n".join([HEADER, *(_markdown_line(line) for line in lines)])


def _markdown_line(line: Line) -> str:
    columns = (("log10_p", 2), ("model_utility", 3), ("utility_kept", 3), ("forget_probability", 3))
    spreads = [(line.spread(column), digits) for column, digits in columns]
    numbers = ["-" if spread is None else spread.text(digits) for spread, digits in spreads]
    epochs = sorted({row["epoch"] for row in line.rows if row["epoch"] is not None})
    epoch = ", ".join(map(str, epochs)) or "-"
    cells = [line.method, line.settings or "-", str(len(line.rows)), epoch, *numbers]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def verdict(lines: Sequence[Line], share: float) -> str:
    """Say which method has the highest forget quality among those that keep ``share`` of the utility."""
    if lines and all(line.spread("utility_kept") is None for line in lines):
        return (
            "Utility kept is unknown: no run was measured before its first step with a model utility "
            "(TOFUEvaluation's at_start: true and generate: true)."
        )
    keeping = [line for line in ranked(lines, share) if line.keeps(share)]
    if not keeping:
        return f"No method keeps {share:g} of the target's model utility."
    best = keeping[0]
    if best.quality == float("-inf"):
        return (
            f"Forget quality is unknown for those that keep {share:g} of the target's model utility: "
            "TOFUEvaluation needs retain_log, the log of a retain model."
        )
    return (
        f"Highest forget quality among those that keep at least {share:g} of the target's model utility: "
        f"{best.method}, log10 p = {best.quality:.2f} ({len(keeping)} of {len(lines)} keep it)."
    )


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    """Write every row, the named columns first and every other number after them; absent ones stay empty."""
    others = sorted({name for row in rows for name in row} - set(COLUMNS))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *others], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path
