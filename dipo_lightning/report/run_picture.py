"""A run at a glance: what it forgot and what it kept, evaluation by evaluation, from the evaluation files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import document_meanings, flat_numbers
from dipo_lightning.evaluation.benchmark import find_benchmark
from dipo_lightning.evaluation.tensorboard import MODEL, RETAIN_MODEL


def headline_picture(evaluations: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the benchmark's two headline numbers over the steps of a run, forgetting above utility, and write a PNG.

    Args:
        evaluations: The documents of a run (the parsed JSON files) on one benchmark, in any order.
        path: Where the picture goes.

    Raises:
        InputError: There is no evaluation, or none has either number.
    """
    from matplotlib.figure import Figure

    last = max(evaluations, key=lambda document: document.get("provenance", {}).get("step", 0), default={})
    benchmark, meanings = find_benchmark(last.get("format", ""), last.get("benchmark", "")), document_meanings(last)
    pair = (benchmark.headline.forget, benchmark.headline.utility) if benchmark else ("", "")
    forgetting, utility = (_curve(evaluations, name) for name in pair)
    if benchmark is None or not (forgetting or utility):
        raise InputError("There is nothing to draw: no evaluation has a headline number of a known benchmark.")
    figure = Figure(figsize=(6.4, 5.2), layout="constrained", dpi=150)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw(upper, forgetting, RETAIN_MODEL, meanings[pair[0]].label)
    _draw(lower, utility, MODEL, meanings[pair[1]].label)
    if forgetting and benchmark.headline.mark:
        value, label = benchmark.headline.mark
        upper.axhline(value, color="0.4", linestyle="--", linewidth=1)
        upper.annotate(label, (0, value), (3, -9), ("axes fraction", "data"),
                       textcoords="offset points", ha="left", fontsize=8, color="0.4")  # fmt: skip
    lower.set_ylim(0, 1.2 * max((value for _, value in utility), default=1.0) or 1.0)
    lower.set_xlabel("optimiser step")
    upper.set_title(benchmark.describe(last.get("settings", {}), last.get("sets", {})))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _curve(evaluations: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """The finite values of a number by step (or by place, where a log has none)."""
    points = [
        (document.get("provenance", {}).get("step", place), flat_numbers(document.get("aggregates", {})).get(name))
        for place, document in enumerate(evaluations)
    ]
    return sorted((step, value) for step, value in points if value is not None and math.isfinite(value))


def _draw(axes: Any, points: list[tuple[float, float]], colour: str, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", linewidth=2)
        step, value = points[-1]
        axes.annotate(f"{value:.3g}", (step, value), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        axes.margins(x=0.06, y=0.18)
    else:
        axes.text(0.5, 0.5, f"no {label}", transform=axes.transAxes, ha="center", color="0.4")
