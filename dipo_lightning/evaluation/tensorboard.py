"""Texts and layout of TensorBoard: answers as a table that is safe to show, and charts of what belongs together."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipo_lightning.evaluation.callback import Evaluation

Row = Mapping[str, Any]
LONGEST = 400
MODEL, RETAIN_MODEL, MARK = "#0072b2", "#d55e00", "#000000"
"""Colours that colour-blind readers tell apart, also in print."""
_MARKUP = frozenset("&<>\"'|\\`*_{}[]()#!~$:")


COLUMNS = ("question", "true answer", "first", "now")
"""Columns of a table of answers."""


def answers_table(first: Sequence[Row], now: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a table of what the model answered in the first evaluation and answers now, with the columns `COLUMNS`.

    Args:
        first: Rows of the first evaluation: those that are shown.
        now: Rows of the present one, of the same set.
    """
    present = {row["index"]: row for row in now}
    cells = []
    for row in first:
        if row["index"] in present:
            question = row.get("question", row.get("prompt"))
            texts = (question, row.get("answer"), row.get("generation"), present[row["index"]].get("generation"))
            cells.append(tuple(text or "" for text in texts))
    return cells


def in_markdown(cells: Iterable[Sequence[str]]) -> str:
    """Return a table of answers in Markdown that is safe to show as HTML."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(escape, row))} |" for row in cells])


def escape(text: str, longest: int = LONGEST) -> str:
    """Make a model's text safe for a cell of a Markdown table that is shown as HTML, and readable.

    Markup of HTML and Markdown becomes character references; line breaks become a visible mark; control characters
    (terminal escapes, text direction, zero-width) become their code.

    Args:
        text: What a model said.
        longest: Characters that are kept.
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(_escaped(character) for character in cut.replace("\r\n", "\n")).strip()


def _escaped(character: str) -> str:
    if character in _MARKUP:
        return f"&#{ord(character)};"
    if character in "\n\r\u2028\u2029":
        return " ⏎ "
    if character == "\t":
        return " "
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn"):
        return f"&#92;u{ord(character):04x}"
    return character


Layout = dict[str, dict[str, list[Any]]]
"""Categories, their charts, and the regular expressions of the tags that each shows."""

_TRAINING: Layout = {
    "1 Training": {
        "forget and retain terms of the loss": ["Multiline", ["^train/forget$", "^train/retain$"]],
        "margin of a forget row": ["Multiline", ["^train/margin$"]],
        "rewards of both distributions": ["Multiline", ["^train/reward_.*"]],
    }
}
_OPTIMISATION: Layout = {
    "3 Optimisation": {
        "whole loss": ["Multiline", ["^train/loss$"]],
        "norm of the gradient before clipping": ["Multiline", ["^train/gradient_norm$"]],
    },
}


def layout(evaluations: Iterable[Evaluation]) -> Layout:
    """Return the charts of a run: of its training, and those of the benchmarks that it is evaluated on."""
    measured: dict[str, list[Any]] = {}
    for one in evaluations:
        for chart in one.benchmark.charts:
            names = [f"^{one.name}/{curve}$" for curve in chart.curves]
            measured[f"{one.benchmark.title}: {chart.title}"] = ["Multiline", names]
        for name in one.metrics:
            measured[f"{one.benchmark.title}: {name}"] = ["Multiline", [f"^{one.name}/{name}(_.*)?$"]]
    return _TRAINING | ({"2 Evaluation": measured} if measured else {}) | _OPTIMISATION


def write_layout(experiment: Any, evaluations: Iterable[Evaluation] = ()) -> None:
    """Add the layout to a run; call it once a run, at the start of ``fit``.

    Args:
        experiment: A ``SummaryWriter``, or what a logger has in its place: anything else is left alone.
        evaluations: The run's evaluation callbacks.
    """
    if hasattr(experiment, "add_custom_scalars"):
        experiment.add_custom_scalars(layout(evaluations))
