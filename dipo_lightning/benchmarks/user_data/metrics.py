"""Sets, metrics and logs of user data: memory of the forget rows and of the retain rows, and the share kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from dipo_lightning.benchmarks import PROBABILITY_CHART, ROUGE_CHART, Benchmark, Chart, Headline
from dipo_lightning.evaluation.rows import EvaluationLog, Sets, add_log_ratios
from dipo_lightning.metrics import (
    ExactMemorization,
    ExtractionStrength,
    Fluency,
    Meaning,
    MinK,
    MinKPlusPlus,
    ModelUtility,
    Perplexity,
    Probability,
    ROUGERecall,
    RowSet,
    RowValues,
    TruthRatio,
)
from dipo_lightning.metrics.base import Row, Table, mean_or_nan

FORGET = RowSet("forget", "What must be forgotten", "what must be forgotten", True, ("nll",))
RETAIN = RowSet("retain", "What must be kept", "what must be kept", False, ("nll",))
ANSWERS: dict[str, Callable[..., Metric]] = {
    "probability": Probability,
    "rouge": ROUGERecall,
    "truth_ratio": TruthRatio,
}
MEMORY: dict[str, Callable[..., Metric]] = {
    "exact_memorization": ExactMemorization,
    "extraction_strength": ExtractionStrength,
    "min_k": MinK,
    "min_k_plus_plus": MinKPlusPlus,
    "fluency": Fluency,
    "perplexity": Perplexity,
}
"""Metrics of both sets, each computed if the rows have its values."""


class Utility(ModelUtility):
    """Harmonic mean of the retain rows' probability, ROUGE-L recall and, if measured, truth ratio."""

    label = "utility"
    meaning = (
        "What the model can still do on your retain rows: harmonic mean of their probability, ROUGE and (where it was "
        "measured) truth ratio."
    )


class KeptShare(RowValues):
    """Mean score of rows before and after unlearning, and the share of it that was kept; 1 if it was 0 before.

    Rows without a score before unlearning are left out; one that has lost its score makes the share NaN.
    """

    columns = ("before", "after")
    label = "score kept"
    higher_is_better = True
    parts: ClassVar = {
        "before": Meaning("score before", "Mean score of the rows before unlearning."),
        "after": Meaning("score after", "The same after unlearning.", higher_is_better=True),
        "rows": Meaning("rows", "Number of rows with a score before unlearning."),
        "unscored": Meaning("rows left out", "Number of rows without one, such as those longer than the model reads."),
        "share": Meaning("share kept", "The score after unlearning, over that before.", higher_is_better=True),
    }

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return a row's score under both models."""
        return row.get("before"), row.get("after")

    def compute(self) -> dict[str, Tensor]:
        """Entries of `parts`; means and share are NaN without rows, or if a row has lost its score."""
        both = self.scored("before")
        before, after = (mean_or_nan(both[name]) for name in self.columns)
        rows = both["index"].numel()
        left_out = self.table()["index"].numel() - rows
        share = torch.where((before == 0) & ~after.isnan(), 1.0, after / before)
        counts = {"rows": torch.tensor(rows), "unscored": torch.tensor(left_out)}
        return {"before": before, "after": after, **counts, "share": share}

    def resamples(self, resamples: int, seed: int) -> Iterator[Table]:
        """Resample the rows with the generator that verdicts have always used, so that their intervals never change."""
        table = self.scored("before")
        size = table["index"].numel()
        if not size:
            return
        for places in torch.randint(size, (resamples, size), generator=torch.Generator().manual_seed(seed)):
            yield {name: values[places] for name, values in table.items()}


class UserData(Benchmark):
    """Forget and retain rows of a user's run."""

    name = "user_data"
    title = "Your own data"
    format = "dipo-lightning/user_data/1"
    sets = (FORGET, RETAIN)
    compared_sets = ("forget",)
    headline = Headline(
        forget="forget_probability",
        utility="utility",
        beside=("forget_rouge",),
        needs="retain rows and schedule.at_start: true",
    )
    shown = (
        *("forget_probability", "forget_rouge", "forget_exact_memorization", "forget_extraction_strength"),
        *("forget_min_k", "forget_truth_ratio", "retain_probability", "retain_rouge", "utility"),
    )
    brief: ClassVar = {
        "forget_probability": "forget",
        "retain_probability": "retain",
        "utility": "utility",
        "forget_rouge": "ROUGE",
    }
    hyperparameter_metrics = ("forget_probability", "forget_rouge", "utility")
    score_options = ("truth_ratio",)
    charts = (
        ROUGE_CHART,
        PROBABILITY_CHART,
        Chart(
            "memory and utility",
            "What is memorised of what must go, and what the model can still do on what must stay.",
            {"forget_exact_memorization": ExactMemorization.label, "utility": Utility.label},
        ),
    )
    answers: ClassVar = {"forget": "forget_answers"}

    def metrics(self, settings: Mapping[str, Any], retain: EvaluationLog | None = None) -> dict[str, Metric]:
        """Return the utility on the retain rows, and the same metrics for both sets."""
        variant = {"variant": settings.get("truth_ratio", "geometric")}
        found: dict[str, Metric] = {"utility": Utility(RETAIN, **variant)}
        for of in self.sets:
            found |= {f"{of.name}_{part}": metric(of, optional=True, **variant) for part, metric in ANSWERS.items()}
            found |= {f"{of.name}_{part}": metric(of, optional=True) for part, metric in MEMORY.items()}
        return found

    def prepare(self, sets: Sets, settings: Mapping[str, Any]) -> None:
        """Add the log truth ratio of each row that has wrong answers."""
        add_log_ratios(sets, settings.get("truth_ratio", "geometric"))

    def describe(self, settings: Mapping[str, Any], sets: Sets) -> str:
        """Return the number of rows of each set."""
        return f"User data ({', '.join(f'{len(rows)} {name}' for name, rows in sets.items())} rows)"
