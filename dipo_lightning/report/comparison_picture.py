"""Forgetting against utility, a trajectory per method: the picture of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#7b3294", "#8c510a", "#4d4d4d", "#b2182b", "#1b7837", "#6a51a3"),
)
MARKERS = "osD^vP<X>phd"
NEAR = 0.9
"""A second panel shows the part above this share of the target's utility, where methods that hold it are close."""


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
    """Draw every method's way from the target, epoch by epoch, and write a PNG.

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
    lowest = lowest if names.lowest is None else max(names.lowest, lowest)
    zoomed = target is not None and min(point.utility for point in everything) < NEAR * target.utility
    figure = Figure(figsize=(13.0 if zoomed else 9.2, 6.0), layout="constrained", dpi=150)
    panels = figure.subplots(1, 2 if zoomed else 1, sharey=True, squeeze=False)[0]
    for axes in panels:
        for place, (name, points) in enumerate(trajectories.items()):
            style = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            _trajectory(axes, name, points, target, style, lowest)
        _landmarks(axes, target, retain, keep, lowest)
        axes.set_xlabel(f"{names.utility} (higher keeps more)")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(f"{names.forgetting} ({names.wanted})")
    highest = max(point.quality_range[1] for point in everything)
    margin = 0.05 * (highest - lowest) or 0.1
    panels[0].set_ylim(lowest - margin, highest + margin)
    panels[0].set_title("Small marks: epochs. Large marks: as reported, with the range over seeds.", fontsize=10)
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    if zoomed:
        assert target is not None
        highest = max(point.utility_range[1] for point in everything)
        panels[1].set_xlim(NEAR * target.utility, highest + 0.01 * target.utility)
        panels[1].set_title(f"The same, above {NEAR:g} of the target's utility", fontsize=10)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _trajectory(
    axes: Any,
    name: str,
    points: Sequence[Point],
    target: Point | None,
    style: tuple[str, str],
    lowest: float,
) -> None:
    """Draw the line through a method's epochs, and its reported point with the range over seeds."""
    colour, marker = style
    way = [point for point in (target, *points) if point is not None]
    at = [(point.utility, max(point.quality, lowest)) for point in way]
    axes.plot(*zip(*at, strict=True), color=colour, linewidth=1.1, alpha=0.6, zorder=2)
    axes.scatter(*zip(*at[target is not None :], strict=True), color=colour, marker=marker, s=14, alpha=0.7, zorder=3)
    for point in points:
        if not point.reported:
            continue
        utility, quality = point.utility, max(point.quality, lowest)
        below, above = (min(max(quality - lowest, 0), quality - max(point.quality_range[0], lowest)),
                        max(point.quality_range[1] - quality, 0))  # fmt: skip
        sides = [[utility - point.utility_range[0]], [point.utility_range[1] - utility]]
        plain = name.replace("$", r"\$")  # a name is no formula
        label = plain if point.quality >= lowest else f"{plain} (at {point.quality:.0f})"
        axes.errorbar(
            utility, quality, xerr=sides, yerr=[[below], [above]], color=colour, marker=marker, markersize=10,
            markeredgecolor="white", capsize=3, linewidth=1.4, linestyle="", label=label, zorder=5,
        )  # fmt: skip


def _landmarks(axes: Any, target: Point | None, retain: Point | None, keep: float, lowest: float) -> None:
    """Draw the target, the retain model, and the utility that must be kept."""
    if target is not None:
        quality = max(target.quality, lowest)
        axes.scatter(target.utility, quality, color="black", marker="*", s=240, label="target", zorder=6)
        axes.axvline(keep * target.utility, color="0.35", linestyle="--", linewidth=1, label=f"{keep:g} of its utility")
    if retain is not None:
        style = {"facecolors": "none", "edgecolors": "black", "linewidths": 2}
        axes.scatter(retain.utility, retain.quality, marker="D", s=110, label="retain", zorder=6, **style)
