"""The curves of a run, each as one SVG image that stands inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dipo_lightning.evaluation.aggregates import document_meanings
from dipo_lightning.evaluation.benchmark import Benchmark
from dipo_lightning.report.run_folder import Curve, Document

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by colour-blind readers


class Chart(NamedTuple):
    """An image with its title and what it shows."""

    title: str
    words: str
    image: str


_TRAINING: Sequence[tuple[str, str, dict[str, str]]] = (
    (
        "The two terms of the loss",
        "Forgetting pushes one down while the other holds on to what must be kept. Their scales differ.",
        {"train/forget": "forget term", "train/retain": "retain term"},
    ),
    (
        "Margin of a forget row",
        "How far the model has moved from the answer it knew towards one it didn't prefer. It starts at 0 and rises.",
        {"train/margin": "margin"},
    ),
    (
        "Rewards of the two distributions",
        "What the model gives to the distribution it should prefer, and to the one it should give up.",
        {"train/reward_preferred": "preferred", "train/reward_dispreferred": "given up"},
    ),
    (
        "Norm of the gradient",
        "Before clipping. A jump marks a step that hurt.",
        {"train/gradient_norm": "norm"},
    ),
)


def training_charts(curves: Mapping[str, Curve]) -> list[Chart]:
    """Draw what training logged; a method's own further terms get a chart each."""
    charts = _charts(_TRAINING, curves)
    known = {tag for _, _, tags in _TRAINING for tag in tags} | {"train/loss", "train/margin_per_token"}
    for tag in sorted(set(curves) - known):
        charts.append(Chart(tag, "Logged by the method.", svg_image({tag: curves[tag]})))
    return charts


def evaluation_charts(
    documents: Sequence[Document],
    scalars: Sequence[Mapping[str, float]],
    benchmark: Benchmark | None,
    retain: Mapping[str, float],
) -> list[Chart]:
    """Draw the numbers of a run's evaluations over its steps; nothing for a single one.

    Args:
        documents: In the order of their steps.
        scalars: The numbers of each.
        benchmark: Its charts are drawn, and one for each metric that the user added; None where it is not known.
        retain: The retain model's numbers, as far as they are known.
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
            powers = all(meanings[tag].unit == "log10" for tag in tags)
            line = mark if benchmark and benchmark.headline.forget in tags else None
            charts.append(Chart(title, words, svg_image(there, levels, line, powers)))
    return charts


def _charts(wanted: Sequence[tuple[str, str, dict[str, str]]], curves: Mapping[str, Curve]) -> list[Chart]:
    found = []
    for title, words, tags in wanted:
        there = {label: curves[tag] for tag, label in tags.items() if curves.get(tag)}
        if there:
            found.append(Chart(title, words, svg_image(there)))
    return found


def svg_image(
    curves: Mapping[str, Curve],
    levels: Mapping[str, float] | None = None,
    mark: tuple[float, str] | None = None,
    powers: bool = False,
) -> str:
    """Draw curves over optimiser steps and return the picture as a ``data:`` address.

    Args:
        curves: By their labels.
        levels: The retain model's number for some of them, drawn as a dotted line in the curve's colour; None for
            curves that are no evaluation's.
        mark: A value that is marked with a dashed line, and its name.
        powers: The values are decimal logarithms, and the axis shows powers of ten.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "dipo-lightning"}
    with mpl.rc_context({**style, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for place, (label, curve) in enumerate(curves.items()):
            points = [(step, value if math.isfinite(value) else math.nan) for step, value in curve]
            marker, colour = "o" if len(points) < 40 else None, COLOURS[place % len(COLOURS)]
            axes.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker, markersize=3.5)
            if levels and label in levels:
                name = "retain model" if len(curves) == 1 else f"{label}, retain model"
                axes.axhline(levels[label], color=colour, linestyle=":", label=name)
        if mark is not None:
            axes.axhline(mark[0], color="0.4", linestyle="--", linewidth=1, label=mark[1])
        axes.set_xlabel("optimiser step")
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
