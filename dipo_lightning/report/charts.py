"""The curves of a run, each as one SVG image that stands inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


def charts_of(document: Document, benchmark: Benchmark | None) -> list[tuple[str, str, dict[str, str]]]:
    """Return the charts of an evaluation: its benchmark's, and one for each metric that the user added."""
    found = [(one.title, one.words, dict(one.curves)) for one in benchmark.charts] if benchmark else []
    for name in document.get("settings", {}).get("metrics") or {}:
        found.append((name.replace("_", " "), "A metric added to this evaluation.", {name: name}))
    return found


def evaluation_charts(
    documents: Sequence[Document],
    scalars: Sequence[Mapping[str, float]],
    charts: Sequence[tuple[str, str, dict[str, str]]],
) -> list[Chart]:
    """Draw the numbers of a run's evaluations over its steps; nothing for a single one.

    Args:
        documents: In the order of their steps.
        scalars: The numbers of each.
        charts: Title, words and label by name of each chart.
    """
    if len(documents) < 2:
        return []
    steps = [document["provenance"].get("step", place) for place, document in enumerate(documents)]
    names = {name for values in scalars for name in values}
    curves = {
        name: [(step, values[name]) for step, values in zip(steps, scalars, strict=True) if name in values]
        for name in names
    }
    return _charts(charts, curves)


def _charts(wanted: Sequence[tuple[str, str, dict[str, str]]], curves: Mapping[str, Curve]) -> list[Chart]:
    found = []
    for title, words, tags in wanted:
        there = {label: curves[tag] for tag, label in tags.items() if curves.get(tag)}
        if there:
            found.append(Chart(title, words, svg_image(there)))
    return found


def svg_image(curves: Mapping[str, Curve]) -> str:
    """Draw curves over optimiser steps and return the picture as a ``data:`` address."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "dipo-lightning"}
    with mpl.rc_context({**style, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for place, (label, curve) in enumerate(curves.items()):
            points = [(step, value if math.isfinite(value) else math.nan) for step, value in curve]
            marker = "o" if len(points) < 40 else None
            axes.plot(*zip(*points, strict=True), label=label, color=COLOURS[place % 6], marker=marker, markersize=3.5)
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if len(curves) > 1:
            figure.legend(loc="outside upper left", frameon=False, ncols=3)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
