"""A picture for each attack: what every model says under it, beside the plain question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"unlearned": "#d55e00", "retain": "#0072b2", "target": "#009e73"}


def draw(
    models: Sequence[str], conditions: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any], title: str
) -> Figure:
    """Draw the conditions of one attack: curves over steps, leak@k over k, or bars of ROUGE-L recall.

    Args:
        models: Names of the attacked models.
        conditions: Of the attack, and the plain question.
        numbers: Aggregates of the evaluation.
        title: Of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    kinds = {condition["kind"] for condition in conditions}
    if "curve" in kinds:
        _curves(axes, models, [one for one in conditions if one["kind"] == "curve"], numbers)
    elif "samples" in kinds:
        _leaks(axes, models, [one for one in conditions if one["kind"] == "samples"], numbers)
    else:
        _bars(axes, models, conditions, numbers)
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=8)
    axes.set_title(title.replace("_", " "))
    return figure


def _curves(
    axes: Axes, models: Sequence[str], conditions: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]
) -> None:
    styles = ("-", "--", ":", "-.")
    for model in models:
        for place, condition in enumerate(conditions):
            steps = condition["steps"]
            values = [_number(numbers, f"{model}_{condition['name']}_step{step}_rouge") for step in steps]
            style = styles[place % len(styles)]
            label = f"{model}: {condition['title']}"
            axes.plot(steps, values, style, color=COLOURS.get(model), marker="o", markersize=3, label=label)
    axes.set_xlabel("optimiser step of the relearning")
    axes.set_ylabel("ROUGE-L recall on the forget rows")


def _leaks(
    axes: Axes, models: Sequence[str], conditions: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]
) -> None:
    for model in models:
        for condition in conditions:
            values = [_number(numbers, f"{model}_{condition['name']}_leak_at_{k}") for k in condition["k"]]
            axes.plot(condition["k"], values, color=COLOURS.get(model), marker="o", label=model)
    axes.set_xlabel("sampled answers k")
    axes.set_ylabel("leak@k")


def _bars(
    axes: Axes, models: Sequence[str], conditions: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]
) -> None:
    width = 0.8 / max(1, len(models))
    for place, model in enumerate(models):
        values = [_number(numbers, f"{model}_{condition['name']}_rouge") for condition in conditions]
        places = [i + place * width for i in range(len(conditions))]
        axes.bar(places, values, width, color=COLOURS.get(model), label=model)
    middle = width * (len(models) - 1) / 2
    axes.set_xticks([i + middle for i in range(len(conditions))])
    axes.set_xticklabels([str(one["title"]) for one in conditions], rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("ROUGE-L recall on the forget rows")


def _number(numbers: Mapping[str, Any], name: str) -> float:
    value = numbers.get(name)
    return float("nan") if value is None else float(value)
