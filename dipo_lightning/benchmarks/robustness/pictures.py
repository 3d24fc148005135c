"""Picture of each attack: the metrics of every model under it, beside the plain question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dipo_lightning.evaluation.colours import MODEL, RETAIN_MODEL, TARGET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"unlearned": MODEL, "retain": RETAIN_MODEL, "target": TARGET}


def draw(
    models: Sequence[str],
    conditions: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, Any],
    title: str,
    parts: Sequence[str],
) -> Figure:
    """Draw the conditions of one attack: curves of every metric over steps, leak@k over k, or bars of one metric.

    Args:
        models: Names of the attacked models.
        conditions: Conditions of the attack, and the plain question.
        numbers: Aggregates of the evaluation.
        title: Title of the picture.
        parts: Names of the metrics; bars show ``rouge`` or, if that is missing, the first.
    """
    from matplotlib.figure import Figure

    kinds = {condition["kind"] for condition in conditions}
    panels = len(parts) if "curve" in kinds else 1
    figure = Figure(figsize=(6.4 if panels == 1 else 4.2 * panels, 4.2), layout="constrained", dpi=150)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if "curve" in kinds:
        for one, part in zip(axes, parts, strict=True):
            _curves(one, models, [condition for condition in conditions if condition["kind"] == "curve"], numbers, part)
    elif "samples" in kinds:
        _leaks(axes[0], models, [one for one in conditions if one["kind"] == "samples"], numbers)
    else:
        _bars(axes[0], models, conditions, numbers, "rouge" if "rouge" in parts else parts[0])
    axes[0].legend(fontsize=8)
    figure.suptitle(title.replace("_", " "))
    return figure


def _limit(axes: Axes, values: Sequence[float]) -> None:
    """Fix the axis to the range from 0 to 1 if all values are shares."""
    if all(0 <= value <= 1 for value in values if value == value):
        axes.set_ylim(0, 1.05)


def _curves(
    axes: Axes, models: Sequence[str], conditions: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any], part: str
) -> None:
    styles = ("-", "--", ":", "-.")
    shown: list[float] = []
    for model in models:
        for place, condition in enumerate(conditions):
            steps = condition["steps"]
            values = [_number(numbers, f"{model}_{condition['name']}_step{step}_{part}") for step in steps]
            style = styles[place % len(styles)]
            label = f"{model}: {condition['title']}"
            axes.plot(steps, values, style, color=COLOURS.get(model), marker="o", markersize=3, label=label)
            shown += values
    _limit(axes, shown)
    axes.set_xlabel("optimiser step of the relearning")
    axes.set_ylabel(_label(part))


def _leaks(
    axes: Axes, models: Sequence[str], conditions: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any]
) -> None:
    for model in models:
        for condition in conditions:
            values = [_number(numbers, f"{model}_{condition['name']}_leak_at_{k}") for k in condition["k"]]
            axes.plot(condition["k"], values, color=COLOURS.get(model), marker="o", label=model)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("sampled answers k")
    axes.set_ylabel("leak@k")


def _bars(
    axes: Axes, models: Sequence[str], conditions: Sequence[Mapping[str, Any]], numbers: Mapping[str, Any], part: str
) -> None:
    width = 0.8 / max(1, len(models))
    shown: list[float] = []
    for place, model in enumerate(models):
        values = [_number(numbers, f"{model}_{condition['name']}_{part}") for condition in conditions]
        shown += values
        places = [i + place * width for i in range(len(conditions))]
        axes.bar(places, values, width, color=COLOURS.get(model), label=model)
    middle = width * (len(models) - 1) / 2
    axes.set_xticks([i + middle for i in range(len(conditions))])
    axes.set_xticklabels([str(one["title"]) for one in conditions], rotation=30, ha="right", fontsize=8)
    _limit(axes, shown)
    axes.set_ylabel(_label(part))


def _label(part: str) -> str:
    """Return the name of a metric for the axis."""
    return f"{'ROUGE-L recall' if part == 'rouge' else part.replace('_', ' ')} on the forget rows"


def _number(numbers: Mapping[str, Any], name: str) -> float:
    value = numbers.get(name)
    return float("nan") if value is None else float(value)
