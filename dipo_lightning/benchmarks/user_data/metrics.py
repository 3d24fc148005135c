"""Sets, metrics and logs of user data: memory of the forget rows and of the retain rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torchmetrics import Metric

from dipo_lightning.benchmarks import PROBABILITY_CHART, ROUGE_CHART, Benchmark, Chart, Headline
from dipo_lightning.evaluation.rows import EvaluationLog, Sets, add_log_ratios
from dipo_lightning.metrics import (
    ExactMemorization,
    ExtractionStrength,
    Fluency,
    MinK,
    MinKPlusPlus,
    ModelUtility,
    Perplexity,
    Probability,
    ROUGERecall,
    RowSet,
    TruthRatio,
)

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


class UserData(Benchmark):
    """Forget and retain rows of a user's run."""

    name = "user_data"
    title = "Your own data"
    format = "dipo-lightning/user_data/1"
    sets = (FORGET, RETAIN)
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
            {"forget_exact_memorization": "exact memorisation", "utility": "utility"},
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
        return f"Own data ({', '.join(f'{len(rows)} {name}' for name, rows in sets.items())} rows)"
