"""Numbers and logs of the harness's tasks, computed from each document's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dipo_lightning.benchmarks import Benchmark, Headline
from dipo_lightning.evaluation.rows import EvaluationLog, Sets
from dipo_lightning.metrics.base import Meaning, Row, RowSet, RowValues

MEAN, MEAN_OF_TASKS = "mean", "mean of tasks"
AGGREGATIONS = (MEAN, MEAN_OF_TASKS, "perplexity", "weighted_perplexity", "bits_per_byte")
"""The harness's aggregations that need only one number per document, or one number and its weight."""


class HarnessNumber(RowValues):
    """A number of a task, or of a group of tasks, as the harness aggregates it.

    Args:
        *sets: The tasks, as sets of rows.
        field: Field of the documents: the harness's metric, followed by the filter's name unless that is ``none``.
        aggregation: One of `AGGREGATIONS`; with any other there is no number.
        higher_is_better: Desired direction; None for neither.
        label: Name for a reader.
    """

    columns = ("number", "weight")

    def __init__(
        self,
        *sets: RowSet | str,
        field: str,
        aggregation: str = MEAN,
        higher_is_better: bool | None = None,
        label: str = "",
    ) -> None:
        super().__init__(*sets)
        self.field, self.aggregation = field, aggregation
        words = f"{field} of the lm-evaluation-harness ({aggregation})."
        self.parts = {"": Meaning(label or field, words, higher_is_better=higher_is_better)}  # type: ignore[misc]

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the document's number and its weight, which is 1 if the harness gives none."""
        value = row.get(self.field)
        if isinstance(value, list | tuple):
            return (value[0], value[1]) if len(value) == 2 and self.aggregation in AGGREGATIONS else (None, None)
        return (float(value) if isinstance(value, int | float) else None, 1.0)

    def compute(self) -> Tensor:
        """Aggregate over the documents; NaN where the aggregation needs more than their numbers."""
        if self.aggregation not in AGGREGATIONS:
            return self._nothing(f"the harness aggregates it by {self.aggregation}, which is not a mean over documents")
        table = self.scored()
        number, weight = table["number"], table["weight"]
        if not number.numel():
            return self._nothing("no document has it")
        if self.aggregation == MEAN_OF_TASKS:
            return torch.stack([number[table["group"] == group].mean() for group in table["group"].unique()]).mean()
        mean = number.sum() / weight.sum()
        if self.aggregation == MEAN:
            return mean
        return -mean / torch.log(mean.new_tensor(2.0)) if self.aggregation == "bits_per_byte" else torch.exp(-mean)


class LMEval(Benchmark):
    """Tasks of the lm-evaluation-harness; its numbers stand beside another benchmark's in comparisons."""

    name = "lm_eval"
    title = "lm-evaluation-harness"
    format = "dipo-lightning/lm_eval/1"
    headline = Headline("", "")
    compared_settings = ()
    columns_beside = ("*",)

    def metrics(self, settings: Mapping[str, Any], retain: EvaluationLog | None = None) -> dict[str, Metric]:
        """Return the numbers that the settings name, each of a task or a group."""
        return {
            name: HarnessNumber(*one["tasks"], **{key: value for key, value in one.items() if key != "tasks"})
            for name, one in settings.get("numbers", {}).items()
        }

    def sets_of(self, settings: Mapping[str, Any]) -> tuple[RowSet, ...]:
        """Return a set of rows for each task."""
        return tuple(RowSet(name, f"Task {name}") for name in settings.get("versions", {}))

    def describe(self, settings: Mapping[str, Any], sets: Sets) -> str:
        """Return the tasks, and how many documents there are."""
        documents = sum(len(rows) for rows in sets.values())
        return (
            f"{self.title} {settings.get('harness', '')}: {', '.join(settings.get('asked', ()))}, {documents} documents"
        )
