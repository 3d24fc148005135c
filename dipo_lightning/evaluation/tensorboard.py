"""TensorBoard: tables of answers that are safe to display, and charts of related numbers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from dipo_lightning.evaluation.benchmark import Benchmark
from dipo_lightning.safety.display import table_in_markdown

Row = Mapping[str, Any]
LONGEST = 400
CHARTS = "charts"
"""Folder of the charts' curves in a run folder, and group of their tags."""
_MARKUP = frozenset("&<>\"'|\\`*_{}[]()#!~$:")


COLUMNS = ("question", "true answer", "first", "now")
"""Columns of a table of answers."""


def answers_table(first: Sequence[Row], now: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the rows of a table with the model's answers in the first and the current evaluation, by `COLUMNS`."""
    present = {row["index"]: row for row in now}
    cells = []
    for row in first:
        if row["index"] in present:
            question = row.get("question", row.get("prompt"))
            texts = (question, row.get("answer"), row.get("generation"), present[row["index"]].get("generation"))
            cells.append(tuple(text or "" for text in texts))
    return cells


def in_markdown(cells: Iterable[Sequence[str]]) -> str:
    """Return a table of answers in Markdown that is safe to render as HTML."""
    return table_in_markdown(COLUMNS, ([escape(text) for text in row] for row in cells))


def escape(text: str) -> str:
    """Escape a model's text for a cell of a Markdown table that is rendered as HTML.

    Markup of HTML and Markdown becomes character references; line breaks become a visible mark; control characters
    (terminal escapes, text direction, zero-width) become their code.
    """
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
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


class RunLogger(TensorBoardLogger):
    """TensorBoard logger that shows the charts of a run's evaluations first.

    TensorBoard assigns a colour per event folder, not per curve. So each curve of a chart has its own folder, such as
    ``charts/must be forgotten`` and ``charts/retain model``, under a common tag that sorts before all others.
    Lightning's ``epoch`` curve is left out.

    Args:
        save_dir: Folder of the runs.
        name: Subfolder; may be empty.
        version: Name of this run; None numbers the runs.
        **options: See Lightning's ``TensorBoardLogger``.
    """

    def __init__(
        self,
        save_dir: str,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        default_hp_metric: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(save_dir, name, version, default_hp_metric=default_hp_metric, **options)
        self._curves: dict[str, Any] = {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars of a step."""
        super().log_metrics({tag: value for tag, value in metrics.items() if tag != "epoch"}, step)

    @rank_zero_only
    def log_charts(self, charts: Mapping[str, Mapping[str, float]], step: int) -> None:
        """Log a point of each curve; ``charts`` holds for each chart's title the values by curve."""
        from torch.utils.tensorboard import SummaryWriter

        for title, values in charts.items():
            for curve, value in values.items():
                if curve not in self._curves:
                    self._curves[curve] = SummaryWriter(str(Path(self.log_dir) / CHARTS / curve))
                self._curves[curve].add_scalar(f"{CHARTS}/{title}", value, step)
        for writer in self._curves.values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the event files."""
        super().finalize(status)
        for writer in self._curves.values():
            writer.close()
        self._curves.clear()


def chart_values(
    benchmark: Benchmark, numbers: Mapping[str, float], retain: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return the values of an evaluation in a benchmark's charts: by chart, then by curve.

    The retain model's number, if known, is a further curve beside the first one of a chart.
    """
    found: dict[str, dict[str, float]] = {}
    for chart in benchmark.charts:
        values = {label: numbers[name] for name, label in chart.curves.items() if name in numbers}
        if not values:
            continue
        first = next(name for name in chart.curves if name in numbers)
        if first in retain:
            values["retain model"] = retain[first]
        if benchmark.headline.mark and benchmark.headline.forget in chart.curves:
            value, label = benchmark.headline.mark
            values[label] = value
        found[f"{benchmark.title}: {chart.title}"] = values
    return found


def event_files(folder: Path) -> Iterator[Path]:
    """Yield TensorBoard's event files of a run, including those of its charts."""
    for pattern in ("events.out.tfevents.*", f"{CHARTS}/*/events.out.tfevents.*"):
        yield from sorted(folder.glob(pattern))
