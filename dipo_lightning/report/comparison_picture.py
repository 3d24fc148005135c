"""Forgetting against utility, a panel per method over the ways of all others: the picture of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError

COLOUR, OTHERS = "#0072b2", "0.8"
COLUMNS = 4
LEFT = 0.6
"""Share of the target's utility at which the axis ends: what lost more is drawn at its edge."""


@dataclass(frozen=True)
class Point:
    """One epoch of a method: means over its seeds, and their range.

    Attributes:
        utility: Utility.
        quality: The number of forgetting.
        utility_range: Lowest and highest utility of the seeds.
        quality_range: Lowest and highest number of forgetting of the seeds.
        reported: Whether this is the epoch that the table reports.
    """

    utility: float
    quality: float
    utility_range: tuple[float, float]
    quality_range: tuple[float, float]
    reported: bool = False


@dataclass(frozen=True)
class Axes:
    """The two numbers that are drawn.

    Attributes:
        utility: Name of the one to the right.
        forgetting: Name of the one upwards.
        wanted: Direction of the second one.
        lowest: Where its axis ends below: what is further down is drawn at its edge and marked.
    """

    utility: str
    forgetting: str
    wanted: str = "higher is better"
    lowest: float | None = None


def comparison_picture(
    trajectories: Mapping[str, Sequence[Point]],
    path: str | Path,
    names: Axes,
    target: Point | None = None,
    retain: Point | None = None,
    keep: float = 0.95,
) -> Path:
    """Draw every method's way from the target, epoch by epoch, in a panel of its own, and write a PNG.

    Args:
        trajectories: Points of each method, first epoch to last; a method without one is left out.
        path: Where the picture goes.
        names: What is drawn.
        target: The model before unlearning; every trajectory starts there.
        retain: The model that never saw the forget set; compared with itself.
        keep: Share of the target's utility that is marked.

    Raises:
        InputError: There is no point at all.
    """
    from matplotlib.figure import Figure

    trajectories = {name: points for name, points in trajectories.items() if points}
    if not trajectories:
        raise InputError("There is nothing to draw: no run has both numbers.")
    everything = [*(point for points in trajectories.values() for point in points), *filter(None, [target, retain])]
    lowest = min(point.quality_range[0] for point in everything)
    least = min(point.utility for point in everything)
    corner = (
        least if target is None else max(least, LEFT * target.utility),
        lowest if names.lowest is None else max(names.lowest, lowest),
    )
    columns = min(COLUMNS, len(trajectories))
    rows = math.ceil(len(trajectories) / columns)
    figure = Figure(figsize=(max(3.0 * columns, 5.0), 2.6 * rows + 0.9), layout="constrained", dpi=130)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    ways = {name: [p for p in (target, *points) if p is not None] for name, points in trajectories.items()}
    for axes, (name, points) in zip(panels, trajectories.items(), strict=False):
        for way in ways.values():
            axes.plot(*_inside(way, corner), color=OTHERS, linewidth=0.9, zorder=1)
        _trajectory(axes, name, points, ways[name], corner)
        _reference_models(axes, target, retain, keep, corner)
        axes.grid(alpha=0.25)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(trajectories) :]:
        axes.remove()
    figure.supxlabel(f"{names.utility} (higher keeps more)", fontsize=10)
    figure.supylabel(f"{names.forgetting} ({names.wanted})", fontsize=10)
    handles = {label: handle for handle, label in zip(*panels[0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _inside(points: Sequence[Point], corner: tuple[float, float]) -> tuple[list[float], list[float]]:
    """The utilities and the numbers of forgetting, none beyond the picture's lower left corner."""
    return [max(p.utility, corner[0]) for p in points], [max(p.quality, corner[1]) for p in points]


def _trajectory(
    axes: Any, name: str, points: Sequence[Point], way: Sequence[Point], corner: tuple[float, float]
) -> None:
    """Draw the line through a method's epochs, and its reported point with the range over seeds."""
    axes.plot(
        *_inside(way, corner), color=COLOUR, linewidth=1.2, marker="o", markersize=3, label="each epoch", zorder=3
    )
    title = name.replace("$", r"\$")  # a name is no formula
    for point in points:
        if not point.reported:
            continue
        utility, quality = max(point.utility, corner[0]), max(point.quality, corner[1])
        left, below = utility - max(point.utility_range[0], corner[0]), quality - max(point.quality_range[0], corner[1])
        right, above = point.utility_range[1] - utility, point.quality_range[1] - quality
        axes.errorbar(
            utility, quality, xerr=[[max(left, 0)], [max(right, 0)]], yerr=[[max(below, 0)], [max(above, 0)]],
            color=COLOUR, marker="o", markersize=8, markeredgecolor="white", capsize=3, linestyle="", zorder=5,
            label="as reported, with the range over seeds",
        )  # fmt: skip
        title += f": {point.quality:.2f} at {point.utility:.3f}"
    axes.set_title(title, fontsize=10)


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
