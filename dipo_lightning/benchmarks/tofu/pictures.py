"""The picture behind a forget quality: two empirical distributions and the distance the test measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dipo_lightning.evaluation.rows import Row
from dipo_lightning.evaluation.tensorboard import MARK, MODEL, RETAIN_MODEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def truth_ratio_figure(
    log_ratios: Sequence[float], reference: Sequence[float] = (), quality: Mapping[str, float] | None = None
) -> Figure:
    """Draw the cumulative distributions of the truth ratio of a model and of the retain model, with D marked.

    Args:
        log_ratios: Natural logarithms of R of the model's forget rows.
        reference: The same of the model that never saw the forget set; empty draws the model alone.
        quality: The test's ``p``, ``log10_p``, ``d`` and ``n``, for the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for values, label, colour in ((log_ratios, "model", MODEL), (reference, "retain", RETAIN_MODEL)):
        if len(values):
            shown = f"{label} (n = {len(values)})"
            axes.ecdf(np.asarray(values) / math.log(10), label=shown, color=colour, linewidth=2)
    if len(reference):
        natural, low, high = largest_distance(log_ratios, reference)
        place = natural / math.log(10)
        axes.plot([place, place], [low, high], color=MARK, linewidth=2, marker="_", markersize=10)
        axes.annotate(f"D = {high - low:.3f}", (place, (low + high) / 2), (6, 0), textcoords="offset points")
    axes.set_xlabel("log10 of the truth ratio R (below 0: the true answer is the likelier)")
    axes.set_ylabel("share of forget rows at or below")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    if quality:
        axes.set_title(f"Forget quality p = {quality['p']:.3g} (log10 p = {quality['log10_p']:.2f})")
    return figure


def largest_distance(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Find where two empirical distributions are furthest apart: the place, and the lower and the higher share."""
    one, two = np.sort(np.asarray(first)), np.sort(np.asarray(second))
    places = np.concatenate([one, two])
    shares = np.stack([np.searchsorted(values, places, side="right") / len(values) for values in (one, two)])
    at = int(np.abs(shares[0] - shares[1]).argmax())
    return float(places[at]), float(shares[:, at].min()), float(shares[:, at].max())


def finite_log_ratios(rows: Sequence[Row]) -> list[float]:
    """Return the finite natural logarithms of R of the rows."""
    values = [row.get("log_ratio") for row in rows]
    return [value for value in values if value is not None and math.isfinite(value)]
