"""TOFU's sets, metrics, numbers and picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torchmetrics import Metric

from dipo_lightning.benchmarks import (
    PROBABILITY_CHART,
    ROUGE_CHART,
    Benchmark,
    Chart,
    ForeignFormat,
    Headline,
)
from dipo_lightning.benchmarks.tofu.logs import (
    OPEN_UNLEARNING_FORMAT,
    TOFU_AUTHORS_FORMAT,
    is_authors_log,
    is_open_unlearning_log,
    read_authors_log,
    read_open_unlearning_log,
    retain_log_name,
)
from dipo_lightning.evaluation.colours import MARK, MODEL, RETAIN_MODEL
from dipo_lightning.evaluation.rows import EvaluationLog, Row, Sets, add_log_ratios
from dipo_lightning.metrics import (
    ExactMemorization,
    ExtractionStrength,
    Fluency,
    ForgetQuality,
    MembershipAUC,
    ModelUtility,
    ParaphraseROUGE,
    Perplexity,
    PerturbedROUGE,
    PrivLeak,
    Probability,
    ReferenceAUC,
    ROUGERecall,
    RowSet,
    TruthProbability,
    TruthRatio,
)
from dipo_lightning.metrics.base import first_clause
from dipo_lightning.metrics.membership import ATTACKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = ("nll", "correct_nll", "wrong_nll", "rouge_l_recall")
FORGET = RowSet("forget", "What must be forgotten", "what must be forgotten", True, _ROW)
RETAIN = RowSet("retain", "What must be kept", "what must be kept", False, _ROW)
REAL_AUTHORS = RowSet("real_authors", "Real authors", "questions about real authors", False, _ROW)
WORLD_FACTS = RowSet("world_facts", "World facts", "questions about the world", False, _ROW)
HOLDOUT = RowSet("holdout", "Rows the model never saw", "rows the model never saw")
OPTIONS = ("real_authors", "world_facts")
"""Sets whose questions have options: the probability is that of the right answer among them."""


class TOFU(Benchmark):
    """TOFU: question-answer pairs about invented authors, some of whom are to be forgotten."""

    name = "tofu"
    title = "TOFU"
    format = "dipo-lightning/tofu/1"
    foreign_formats = (
        ForeignFormat(TOFU_AUTHORS_FORMAT, "TOFU's eval_log_aggregated.json", is_authors_log, read_authors_log),
        ForeignFormat(
            OPEN_UNLEARNING_FORMAT,
            "open-unlearning's TOFU_EVAL.json",
            is_open_unlearning_log,
            read_open_unlearning_log,
            whole_prompts=True,
        ),
    )
    sets = (FORGET, RETAIN, REAL_AUTHORS, WORLD_FACTS, HOLDOUT)
    headline = Headline(
        forget="forget_quality_log10_p",
        utility="model_utility",
        beside=("forget_probability",),
        needs="retain_log (the log of a retain model), measuring.generate: true and schedule.at_start: true",
        mark=(math.log10(0.05), "p = 0.05"),
        lowest=-20.0,
    )
    shown = (
        *("forget_quality_p", "forget_quality_log10_p", "model_utility", "forget_truth_ratio", "forget_probability"),
        *("forget_rouge", "retain_rouge"),
    )
    brief: ClassVar = {
        "forget_quality_p": "p",
        "model_utility": "utility",
        "forget_probability": "forget",
        "retain_probability": "retain",
    }
    hyperparameter_metrics = ("forget_quality_p", "model_utility")
    retain_values: ClassVar = {"forget_quality_p": 1.0, "forget_quality_log10_p": 0.0}
    compared_sets = ("forget", "holdout")
    score_options = ("truth_ratio",)
    charts = (
        Chart(
            "forget quality on a log scale",
            "p-value of a test against a model that never saw what must be forgotten. Above 0.05 it cannot tell them "
            "apart.",
            {"forget_quality_log10_p": "this model"},
        ),
        Chart(ModelUtility.label, first_clause(ModelUtility.meaning), {"model_utility": "this model"}),
        PROBABILITY_CHART,
        ROUGE_CHART,
    )
    answers: ClassVar = {"forget": "forget_answers"}
    histograms: ClassVar = {"forget_log_truth_ratio": ("forget", "log_ratio")}

    def metrics(self, settings: Mapping[str, Any], retain: EvaluationLog | None = None) -> dict[str, Metric]:
        """Return forget quality, model utility with its nine parts, and further metrics of the forget set."""
        variant = settings.get("truth_ratio", "geometric")
        answered = (FORGET, RETAIN, REAL_AUTHORS, WORLD_FACTS)
        whole: dict[str, Any] = {"among_options": OPTIONS, "complete": True, "variant": variant}
        found: dict[str, Metric] = {
            "model_utility": ModelUtility(*answered[1:], **whole),
            "forget_quality": ForgetQuality(FORGET, None if retain is None else retain.sets.get("forget", [])),
        }
        for of in answered:
            found[f"{of.name}_probability"] = Probability(of, **whole, lists_unscored=True)
            found[f"{of.name}_rouge"] = ROUGERecall(of, **whole)
            found[f"{of.name}_truth_ratio"] = TruthRatio(of, **whole)
        found["forget_truth_ratio_prob_mean"] = TruthProbability(FORGET, variant=variant, optional=True)
        found["forget_paraphrased_rouge"] = ParaphraseROUGE(FORGET, optional=True)
        found["forget_perturbed_rouge"] = PerturbedROUGE(FORGET, optional=True)
        found["forget_exact_memorization"] = ExactMemorization(FORGET, optional=True)
        found["forget_extraction_strength"] = ExtractionStrength(FORGET, optional=True)
        found["forget_fluency"] = Fluency(FORGET, optional=True)
        found["forget_perplexity"] = Perplexity(FORGET, optional=True)
        for attack in ATTACKS:
            found[f"forget_{attack}_auc"] = MembershipAUC(FORGET, HOLDOUT, attack=attack, optional=True)
        retain_rows = None if retain is None else retain.sets
        found["forget_reference_auc"] = ReferenceAUC(FORGET, HOLDOUT, retain_rows=retain_rows, optional=True)
        return found | {"privleak": PrivLeak(FORGET, HOLDOUT, retain_rows=retain_rows, optional=True)}

    def prepare(self, sets: Sets, settings: Mapping[str, Any]) -> None:
        """Add each row's log truth ratio."""
        add_log_ratios(sets, settings.get("truth_ratio", "geometric"))

    def hub_log(self, pretrained: str, options: Mapping[str, Any]) -> str:
        """Return the path of the retain model's log for a target and a split; see `retain_log_name`."""
        return retain_log_name(pretrained, str(options.get("split")))

    def describe(self, settings: Mapping[str, Any], sets: Sets) -> str:
        """Return the data set and its forget split."""
        return f"TOFU {settings['split']}"

    def pictures(self, sets: Sets, aggregates: Mapping[str, Any], retain: EvaluationLog | None) -> dict[str, Figure]:
        """Return a picture of the test of forget quality; see `truth_ratio_figure`."""
        mine = finite_log_ratios(sets.get("forget", ()))
        if not mine:
            return {}
        other = finite_log_ratios(retain.sets.get("forget", ()) if retain else ())
        return {"forget_quality": truth_ratio_figure(mine, other, aggregates.get("forget_quality"))}


def truth_ratio_figure(
    log_ratios: Sequence[float], reference: Sequence[float] = (), quality: Mapping[str, float] | None = None
) -> Figure:
    """Draw the cumulative distributions of the truth ratio R of a model and of the retain model.

    The largest distance between the two, D, is marked: it is the statistic of the test.

    Args:
        log_ratios: Natural logarithms of R of the model's forget rows.
        reference: Those of the retain model; without them the model is drawn alone.
        quality: The test's `p` and `log10_p`, for the title.
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
    """Find the largest distance between two empirical distributions: the value, and the lower and the higher share."""
    one, two = np.sort(np.asarray(first)), np.sort(np.asarray(second))
    places = np.concatenate([one, two])
    shares = np.stack([np.searchsorted(values, places, side="right") / len(values) for values in (one, two)])
    at = int(np.abs(shares[0] - shares[1]).argmax())
    return float(places[at]), float(shares[:, at].min()), float(shares[:, at].max())


def finite_log_ratios(rows: Sequence[Row]) -> list[float]:
    """Return the natural logarithms of the rows' truth ratios, except for infinite and missing ones."""
    values = [row.get("log_ratio") for row in rows]
    return [value for value in values if value is not None and math.isfinite(value)]
