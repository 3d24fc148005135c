"""What TensorBoard shows of an evaluation beside its scalars: distributions and texts.

The layout of TensorBoard's CUSTOM SCALARS tab: what belongs together, drawn in one chart.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
LONGEST = 400
MODEL, RETAIN_MODEL, MARK = "#0072b2", "#d55e00", "#000000"
"""Colours that colour-blind readers tell apart, also in print."""
_MARKUP = frozenset("&<>\"'|\\`*_{}[]()#!~$:")


def answers_table(first: Sequence[Row], now: Sequence[Row]) -> str:
    """Return a Markdown table of what the model answered in the first evaluation and answers now.

    Args:
        first: Rows of the first evaluation: those that are shown.
        now: Rows of the present one, of the same set.
    """
    present = {row["index"]: row for row in now}
    lines = ["| question | true answer | first | now |", "|---|---|---|---|"]
    for row in first:
        if row["index"] in present:
            texts = (row["question"], row["answer"], row["generation"], present[row["index"]]["generation"])
            lines.append("| " + " | ".join(escape(text or "") for text in texts) + " |")
    return "\n".join(lines)


def write_answers(experiment: Any, table: str, step: int, tag: str = "tofu/forget_answers") -> None:
    """Add the table of answers as text."""
    experiment.add_text(tag, table, step)


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


LAYOUT: dict[str, dict[str, list[Any]]] = {
    "1 Is it forgetting, and at what price?": {
        "forget and retain terms of the loss": ["Multiline", ["^train/forget$", "^train/retain$"]],
        "margin of a forget row": ["Multiline", ["^train/margin$"]],
        "rewards of both distributions": ["Multiline", ["^train/reward_.*"]],
        "forget quality (p) against model utility": ["Multiline", ["^tofu/forget_quality_p$", "^tofu/model_utility$"]],
    },
    "2 What it still says": {
        "probability of the answers": ["Multiline", ["^(tofu|user_data)/(forget|retain)_probability$"]],
        "ROUGE-L recall of the answers": ["Multiline", ["^(tofu|user_data)/(forget|retain)_rouge$"]],
        "forget quality, log10 p (0: as if retrained)": ["Multiline", ["^(tofu|user_data)/forget_quality_log10_p$"]],
        "MUSE: memory of what must go and of what must stay": ["Multiline", ["^muse/(verbmem|knowmem_).*"]],
        "utility on user data": [
            "Multiline",
            ["^user_data/utility$", "^user_data/forget_exact_memorization$"],
        ],
    },
    "3 Optimisation": {
        "whole loss": ["Multiline", ["^train/loss$"]],
        "norm of the gradient before clipping": ["Multiline", ["^train/gradient_norm$"]],
    },
}
"""Categories, their charts, and the regular expressions of the tags that each shows."""


def write_layout(experiment: Any) -> None:
    """Add the layout to a run; call it once a run, at the start of ``fit``.

    Args:
        experiment: A ``SummaryWriter``, or what a logger has in its place: anything else is left alone.
    """
    if hasattr(experiment, "add_custom_scalars"):
        experiment.add_custom_scalars(LAYOUT)
