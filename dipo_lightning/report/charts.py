"""Charts of a run, each as an SVG image inside its page, and the picture of a comparison."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import document_meanings, number_text
from dipo_lightning.evaluation.benchmark import Benchmark
from dipo_lightning.evaluation.colours import CURVES, MODEL, RETAIN_MODEL
from dipo_lightning.report.runs import Curve, Document


class DrawnChart(NamedTuple):
    """An image with its title and a description."""

    title: str
    words: str
    image: str


_TRAINING: Sequence[tuple[str, str, dict[str, str]]] = (
    (
        "The two terms of the loss",
        "One term pushes the forget rows down, the other holds the retain rows. Their scales differ.",
        {"train/forget": "forget term", "train/retain": "retain term"},
    ),
    (
        "Margin of a forget row",
        "Distance that the policy has moved from the dispreferred towards the preferred distribution; 0 at the start.",
        {"train/margin": "margin"},
    ),
    (
        "Rewards of the two distributions",
        "Reward of the preferred and of the dispreferred distribution.",
        {"train/reward_preferred": "preferred", "train/reward_dispreferred": "dispreferred"},
    ),
    (
        "Norm of the gradient",
        "Before clipping. A jump marks a step that hurt.",
        {"train/gradient_norm": "norm"},
    ),
)


def training_charts(curves: Mapping[str, Curve]) -> list[DrawnChart]:
    """Draw the scalars logged in training; each further term of a method gets its own chart."""
    charts = []
    for title, words, tags in _TRAINING:
        if there := {label: curves[tag] for tag, label in tags.items() if curves.get(tag)}:
            charts.append(DrawnChart(title, words, svg_image(there)))
    known = {tag for _, _, tags in _TRAINING for tag in tags} | {"train/loss", "train/margin_per_token"}
    for tag in sorted(set(curves) - known):
        charts.append(DrawnChart(tag, "Logged by the method.", svg_image({tag: curves[tag]})))
    return charts


def evaluation_charts(
    documents: Sequence[Document],
    scalars: Sequence[Mapping[str, float]],
    benchmark: Benchmark | None,
    retain: Mapping[str, float],
) -> list[DrawnChart]:
    """Draw the numbers of a run's evaluations over its steps: the benchmark's charts, and one per metric a user added.

    A single evaluation gives no charts. ``retain`` holds the retain model's numbers, as far as they are known.
    """
    if len(documents) < 2:
        return []
    steps = [document["provenance"].get("step", place) for place, document in enumerate(documents)]
    names = {name for values in scalars for name in values}
    curves = {
        name: [(step, values[name]) for step, values in zip(steps, scalars, strict=True) if name in values]
        for name in names
    }
    wanted = [(one.title, one.words, dict(one.curves)) for one in benchmark.charts] if benchmark else []
    for name in documents[-1].get("settings", {}).get("metrics") or {}:
        wanted.append((name.replace("_", " "), "A metric added to this evaluation.", {name: name}))
    mark = benchmark.headline.mark if benchmark else None
    meanings = document_meanings(documents[-1])
    charts = []
    for title, words, tags in wanted:
        there = {label: curves[tag] for tag, label in tags.items() if curves.get(tag)}
        if there:
            levels = {label: retain[tag] for tag, label in tags.items() if tag in retain}
            units = {meanings[tag].unit for tag in tags}
            powers = units == {"log10"}
            unit = units.pop() if len(units) == 1 and not powers else ""
            line = mark if benchmark and benchmark.headline.forget in tags else None
            charts.append(DrawnChart(title, words, svg_image(there, levels, line, powers, unit)))
    return charts


def svg_image(
    curves: Mapping[str, Curve],
    levels: Mapping[str, float] | None = None,
    mark: tuple[float, str] | None = None,
    powers: bool = False,
    unit: str = "",
) -> str:
    """Draw curves over optimiser steps and return the picture as a ``data:`` address.

    Args:
        curves: Curves by label.
        levels: The retain model's numbers by label, drawn as dotted lines (of several, each in its curve's colour);
            None for curves that are not from an evaluation.
        mark: A value to mark with a dashed line, and its name.
        powers: The values are decimal logarithms; the axis shows powers of ten.
        unit: Unit of the values, shown at the axis.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "dipo-lightning"}
    with mpl.rc_context({**style, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        alone = len(curves) == 1
        for place, (label, curve) in enumerate(curves.items()):
            points = [(step, value if math.isfinite(value) else math.nan) for step, value in curve]
            marker = "o" if len(points) < 40 else None
            colour = MODEL if alone else CURVES[place % len(CURVES)]
            axes.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, markersize=3.5)
            if levels and label in levels:
                name = "retain model" if alone else f"{label}, retain model"
                axes.axhline(levels[label], color=RETAIN_MODEL if alone else colour, linestyle=":", label=name)
        if mark is not None:
            axes.axhline(mark[0], color="0.4", linestyle="--", linewidth=1, label=mark[1])
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        everything = [value for curve in curves.values() for _, value in curve] + list((levels or {}).values())
        if levels is not None and not powers and all(0 <= value <= 1 for value in everything):
            axes.set_ylim(0, 1.05)  # so that a small change looks small
        if powers:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "1" if value == 0 else f"1e{value:.0f}"))
        axes.grid(alpha=0.25)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            figure.legend(loc="outside upper left", frameon=False, ncols=2)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


OTHERS = "0.8"
"""Grey of the paths of the other methods."""
COLUMNS = 4
LABEL = 2.5
"""Width of a long label of the legend in inches."""
LEFT = 0.6
"""Least share of the target's utility at which the horizontal axis begins; points below it are drawn at the edge."""


@dataclass(frozen=True)
class Point:
    """One epoch of a method: means over its seeds, and their range.

    Attributes:
        utility: Utility.
        quality: The number that measures forgetting.
        utility_range: Lowest and highest utility of the seeds.
        quality_range: Lowest and highest `quality` of the seeds.
        reported: Whether this is the epoch that the table reports.
    """

    utility: float
    quality: float
    utility_range: tuple[float, float]
    quality_range: tuple[float, float]
    reported: bool = False


@dataclass(frozen=True)
class Axes:
    """The two axes of the picture.

    Attributes:
        utility: Label of the horizontal axis.
        forgetting: Label of the vertical axis.
        wanted: Desired direction of the vertical axis.
        lowest: Lower end of the vertical axis; points below it are drawn at the edge and marked.
        mark: A value of the vertical axis to mark with a dotted line, and its name.
    """

    utility: str
    forgetting: str
    wanted: str = "higher is better"
    lowest: float | None = None
    mark: tuple[float, str] | None = None


def comparison_picture(
    trajectories: Mapping[str, Sequence[Point]],
    path: str | Path,
    names: Axes,
    target: Point | None = None,
    retain: Point | None = None,
    keep: float = 0.95,
) -> Path:
    """Draw every method's path from the target, epoch by epoch, in its own panel, and write a PNG.

    Args:
        trajectories: Points of each method, first epoch to last; a method without points is left out.
        path: The file to write.
        names: The two axes.
        target: The model before unlearning; every trajectory starts there.
        retain: The retain model, with the numbers of a comparison with itself.
        keep: Share of the target's utility to mark.
    """
    from matplotlib.figure import Figure

    trajectories = {name: points for name, points in trajectories.items() if points}
    if not trajectories:
        raise InputError("There is nothing to draw: no run has both numbers.")
    everything = [*(point for points in trajectories.values() for point in points), *filter(None, [target, retain])]
    lowest = min(point.quality_range[0] for point in everything)
    least = min(point.utility_range[0] for point in everything)
    corner = (
        least if target is None else max(least, LEFT * target.utility),
        lowest if names.lowest is None else max(names.lowest, lowest),
    )
    columns = min(COLUMNS, len(trajectories))
    rows = math.ceil(len(trajectories) / columns)
    width = max(3.0 * columns, 5.0)
    abreast = 6 if columns == COLUMNS else int(width / LABEL)
    height = 2.6 * rows + (0.9 if columns == COLUMNS else 1.4)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    ways = {name: [p for p in (target, *points) if p is not None] for name, points in trajectories.items()}
    for axes, (name, points) in zip(panels, trajectories.items(), strict=False):
        for way in ways.values():
            axes.plot(*_inside(way, corner), color=OTHERS, linewidth=0.9, zorder=1)
        _trajectory(axes, name, points, ways[name], corner)
        _reference_models(axes, target, retain, keep, corner)
        if names.mark is not None:
            axes.axhline(names.mark[0], color="0.35", linestyle=":", linewidth=1, label=names.mark[1])
        axes.grid(alpha=0.25)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(trajectories) :]:
        axes.remove()
    figure.supxlabel(f"{names.utility} (higher keeps more)", fontsize=10)
    figure.supylabel(f"{names.forgetting} ({names.wanted})", fontsize=10)
    handles = {
        label: handle
        for axes in panels[: len(trajectories)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=abreast, frameon=False, fontsize=9
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _inside(points: Sequence[Point], corner: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Return the points' coordinates (utility, quality), clipped to the picture's lower left corner."""
    return [max(p.utility, corner[0]) for p in points], [max(p.quality, corner[1]) for p in points]


def _trajectory(
    axes: Any, name: str, points: Sequence[Point], way: Sequence[Point], corner: tuple[float, float]
) -> None:
    """Draw the line through a method's epochs, and its reported point with the range over seeds."""
    axes.plot(*_inside(way, corner), color=MODEL, linewidth=1.2, marker="o", markersize=3, label="each epoch", zorder=3)
    title = name.replace("$", r"\$")  # matplotlib would set what follows as a formula
    for point in points:
        if not point.reported:
            continue
        utility, quality = max(point.utility, corner[0]), max(point.quality, corner[1])
        left, below = utility - max(point.utility_range[0], corner[0]), quality - max(point.quality_range[0], corner[1])
        right, above = point.utility_range[1] - utility, point.quality_range[1] - quality
        marker = _marker(point, corner)
        what = "as reported, with the range over seeds" if marker == "o" else "as reported, further out: see the title"
        axes.errorbar(
            utility, quality, xerr=[[max(left, 0)], [max(right, 0)]], yerr=[[max(below, 0)], [max(above, 0)]],
            color=MODEL, marker=marker, markersize=8, markeredgecolor="white", capsize=3, linestyle="", zorder=5,
            label=what,
        )  # fmt: skip
        title += f": {number_text(point.quality, 2)} at {number_text(point.utility, 3)}"
    axes.set_title(title, fontsize=10)


def _marker(point: Point, corner: tuple[float, float]) -> str:
    """Return a dot, or an arrow to the left or down for a point outside of the picture."""
    if point.utility < corner[0]:
        return "<"
    return "v" if point.quality < corner[1] else "o"


def _reference_models(
    axes: Any, target: Point | None, retain: Point | None, keep: float, corner: tuple[float, float]
) -> None:
    """Draw the target, the retain model, and the utility that must be kept."""
    if target is not None:
        label = f"{keep:g} of the target's utility"
        axes.axvline(keep * target.utility, color="0.35", linestyle="--", linewidth=1, label=label)
        axes.scatter(*_inside([target], corner), color="black", marker="*", s=110, label="target", zorder=6)
    if retain is not None:
        style = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.6}
        axes.scatter(*_inside([retain], corner), marker="D", s=45, label="retain model", zorder=6, **style)
