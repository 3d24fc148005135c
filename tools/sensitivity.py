"""Sensitivity: forget quality and utility kept over each option around a setting, as a table and a picture.

    python -m tools.sensitivity compare/ablation --output FOLDER

reads a finished comparison. Its first method is the setting around which the others change one option each; methods
that change several are left out.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from dipo_lightning.benchmarks.tofu.metrics import TOFU
from dipo_lightning.cli.configs import find_config
from dipo_lightning.comparison.results import Row, Scale, Spread
from dipo_lightning.evaluation.colours import MODEL

CENTRE = "as chosen"
"""Option of the point that all others are compared with."""
SCALE = Scale.of(TOFU())
NUMBERS = (SCALE.headline.forget, "utility_kept")


@dataclass
class Point:
    """One value of an option.

    Attributes:
        option: Dotted name of the option; `CENTRE` for the setting itself.
        value: The value as text.
        rows: The result of each seed.
    """

    option: str
    value: str
    rows: list[Row] = field(default_factory=list)


def group(found: Iterable[tuple[str, str, Row]]) -> list[Point]:
    """Gather each option's and value's rows, one per seed; options in order of appearance, numbers by size."""
    points: dict[tuple[str, str], Point] = {}
    for option, value, row in found:
        point = points.setdefault((option, value), Point(option, value))
        point.rows += [] if row["seed"] in (one["seed"] for one in point.rows) else [row]
    options = list(dict.fromkeys(option for option, _ in points))
    return sorted(points.values(), key=lambda point: (options.index(point.option), size(point.value)))


def size(value: str) -> float:
    """Return the number that a value is; 0 for a word."""
    try:
        return float(value)
    except ValueError:
        return 0.0


def read_comparison(plan: dict[str, Any]) -> list[Point]:
    """Return the points of a finished comparison, given its plan."""
    methods = {method["name"]: method.get("settings") or {} for method in plan["methods"]}
    first = plan["methods"][0]["name"]
    with (Path(plan["output"]) / "comparison.csv").open(encoding="utf-8") as file:
        found_rows = [row for row in csv.DictReader(file) if row["method"] in methods]
    rows: list[Row] = [row for row in found_rows if all(row[name] for name in NUMBERS)]
    for row in rows:
        row.update({name: float(row[name]) for name in NUMBERS})
    last = max(int(row["epoch"]) for row in rows)
    ended = [row for row in rows if int(row["epoch"]) == last]
    found = [(CENTRE, "", row) for row in ended if row["method"] == first]
    found += [("epochs", row["epoch"], row) for row in rows if row["method"] == first and row["epoch"] != "0"]
    for name, settings in methods.items():
        if name == first or len(settings) != 1:
            continue
        [(option, value)] = settings.items()
        found += [(option, text(value), row) for row in ended if row["method"] == name]
        if option in methods[first]:
            found += [(option, text(methods[first][option]), row) for row in ended if row["method"] == first]
    return group(found)


def text(value: Any) -> str:
    """Return a value of an option as it is shown."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if number else str(value)


def write_sensitivity(points: Sequence[Point], output: Path, head: str) -> str:
    """Write sensitivity.md and sensitivity.png; return the table."""
    written = f"{head}:\n\n{table(points)}\n"
    (output / "sensitivity.md").write_text(written, encoding="utf-8")
    draw(points, output / "sensitivity.png")
    return written


def table(points: Sequence[Point]) -> str:
    """Return forget quality and utility kept of each value: the mean over seeds with the lowest and highest end."""
    lines = [f"| option | value | seeds | {SCALE.label(NUMBERS[0])} | utility kept |", "|---|---|---|---|---|"]
    for point in points:
        found = [Spread.of(point.rows, name) for name in NUMBERS]
        cells = ["-" if one is None else one.text(digits) for one, digits in zip(found, (2, 3), strict=True)]
        lines.append(f"| {point.option} | {point.value or '-'} | {len(point.rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw both numbers over the values of each option, with intervals; the centre as a line across."""
    centre = next((point.rows for point in points if point.option == CENTRE), [])
    options = list(dict.fromkeys(point.option for point in points if point.option != CENTRE))
    figure = Figure(figsize=(1.9 * len(options) + 0.8, 5.2), layout="constrained", dpi=110)
    panels = figure.subplots(2, len(options), sharex="col", sharey="row", squeeze=False)
    for line, name, words in zip(panels, NUMBERS, (SCALE.label(NUMBERS[0]), "utility kept"), strict=True):
        line[0].set_ylabel(words)
        for axes, option in zip(line, options, strict=True):
            found = [(point.value, Spread.of(point.rows, name)) for point in points if point.option == option]
            shown = [(value, spread) for value, spread in found if spread is not None]
            ends = [[s.mean - s.low for _, s in shown], [s.high - s.mean for _, s in shown]]
            values, means = [value for value, _ in shown], [spread.mean for _, spread in shown]
            axes.errorbar(values, means, yerr=ends, marker="o", capsize=3, color=MODEL)
            if (across := Spread.of(centre, name)) is not None:
                axes.axhline(across.mean, color="0.6", linewidth=0.9, linestyle="--")
            axes.tick_params(axis="x", labelsize="small", rotation=45 if len(values) > 5 else 0)
            axes.grid(alpha=0.25)
    for axes, option in zip(panels[1], options, strict=True):
        axes.set_xlabel(option)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", help="file or short name of a comparison, such as compare/ablation")
    parser.add_argument("--output", type=Path, required=True, help="folder of the table and the picture")
    given = parser.parse_args()
    plan = yaml.safe_load(Path(find_config(given.comparison)).read_text(encoding="utf-8"))
    given.output.mkdir(parents=True, exist_ok=True)
    print(write_sensitivity(read_comparison(plan), given.output, f"Around {plan['methods'][0]['name']}"))


if __name__ == "__main__":
    main()
