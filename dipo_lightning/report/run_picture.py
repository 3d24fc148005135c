"""A run at a glance: what it forgot and what it kept, evaluation by evaluation, from the evaluation files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.tensorboard import MODEL, RETAIN_MODEL

SIGNIFICANT = 0.05  # below this p the model can still be told from a retrained one


def forget_quality_picture(evaluations: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw forget quality (log10 p) above model utility over the steps of a run, and write a PNG.

    Args:
        evaluations: The documents of a run (the parsed JSON files), in any order.
        path: Where the picture goes.

    Raises:
        InputError: There is no evaluation, or none has either number.
    """
    from matplotlib.figure import Figure

    points = sorted((_point(i, document) for i, document in enumerate(evaluations)), key=lambda point: point[0])
    quality = [(step, value) for step, value, _ in points if math.isfinite(value)]
    utility = [(step, value) for step, _, value in points if math.isfinite(value)]
    if not quality and not utility:
        raise InputError("There is nothing to draw: no evaluation has a forget quality or a model utility.")
    figure = Figure(figsize=(6.4, 5.2), layout="constrained", dpi=150)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw(upper, quality, RETAIN_MODEL, "forget quality, log10 p", "no reference log: no forget quality")
    _draw(lower, utility, MODEL, "model utility", "no answers generated: no model utility")
    if quality:
        upper.axhline(math.log10(SIGNIFICANT), color="0.4", linestyle="--", linewidth=1)
        upper.annotate(f"p = {SIGNIFICANT}", (0, math.log10(SIGNIFICANT)), (3, -9), ("axes fraction", "data"),
                       textcoords="offset points", ha="left", fontsize=8, color="0.4")  # fmt: skip
    lower.set_ylim(0, 1.2 * max((value for _, value in utility), default=1.0) or 1.0)
    lower.set_xlabel("optimiser step")
    upper.set_title(str(evaluations[0].get("settings", {}).get("split", "")))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _point(position: int, document: Mapping[str, Any]) -> tuple[float, float, float]:
    """Step (or the position, where a log has none), log10 p and model utility; NaN where absent."""
    aggregates = document.get("aggregates", {})
    step = document.get("provenance", {}).get("step", position)
    quality, utility = aggregates.get("forget_quality") or {}, aggregates.get("model_utility")
    return step, quality.get("log10_p", math.nan), math.nan if utility is None else utility


def _draw(axes: Any, points: list[tuple[float, float]], colour: str, label: str, absent: str) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", linewidth=2)
        step, value = points[-1]
        axes.annotate(f"{value:.3g}", (step, value), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        axes.margins(x=0.06, y=0.18)
    else:
        axes.text(0.5, 0.5, absent, transform=axes.transAxes, ha="center", color="0.4")
