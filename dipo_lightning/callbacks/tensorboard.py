"""What TensorBoard shows of an evaluation beside its scalars: distributions and texts."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dipo_lightning.metrics.tofu import row_log_ratio
from dipo_lightning.report.tofu_pictures import truth_ratio_figure

Row = Mapping[str, Any]
LONGEST = 400
_MARKUP = frozenset("&<>\"'|\\`*_{}[]()#!~$:")


def truth_ratios(rows: Sequence[Row] | None, variant: str) -> list[float]:
    """Return the finite natural logarithms of R of the rows, in ``variant``."""
    values = [row_log_ratio(row, variant) for row in rows or ()]
    return [value for value in values if math.isfinite(value)]


def write_truth_ratios(
    experiment: Any,  # noqa: ANN401
    log_ratios: Sequence[float],
    reference: Sequence[float],
    quality: Mapping[str, float] | None,
    step: int,
) -> None:
    """Add the histogram of log R, and the two distributions whose distance is the test statistic."""
    if not log_ratios:
        return
    experiment.add_histogram("tofu/forget_log_truth_ratio", np.asarray(log_ratios), step)
    experiment.add_figure("tofu/forget_quality", truth_ratio_figure(log_ratios, reference, quality), step)


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


def write_answers(experiment: Any, table: str, step: int, tag: str = "tofu/forget_answers") -> None:  # noqa: ANN401
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
