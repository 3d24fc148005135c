"""Sets, metrics and logs of attacks: every condition on every model, leak@k, and the scores R and Q."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dipo_lightning.benchmarks.robustness.pictures import draw
from dipo_lightning.benchmarks.robustness.tables import PARTS, markdown_table, number_names, short_name
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.benchmark import Benchmark, Headline, import_class
from dipo_lightning.evaluation.rows import EvaluationLog, Row, Sets, add_log_ratios
from dipo_lightning.metrics import (
    ExactMemorization,
    ExtractionStrength,
    MinK,
    MinKPlusPlus,
    Probability,
    ROUGERecall,
    RowMean,
    RowSet,
    RowValues,
    TruthProbability,
    TruthRatio,
)
from dipo_lightning.metrics.base import Rows, bootstrap, meanings
from dipo_lightning.metrics.functional.robustness import leak_at_k, quantization_score, relearning_score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLAIN = {"name": "plain", "title": "plain question", "kind": "answers", "attack": "plain"}


class RobustnessRow(Row, total=False):
    """Row of a question under attack.

    Attributes:
        sampled: Number of sampled answers.
        leaking: Number of those that leak.
    """

    sampled: float | None
    leaking: float | None


class LeakAtK(RowMean):
    """Mean leak@k over questions (arXiv 2511.04934).

    Args:
        *sets: The set of sampled answers.
        k: Number of answers that an attacker draws.
        **options: See `RowValues`.
    """

    remembers = 1

    def __init__(self, *sets: RowSet | str, k: int, **options: Any) -> None:
        super().__init__(*sets, **options)
        self.k, self.label = k, f"leak@{k}"
        self.meaning = f"Chance that at least one of {k} sampled answers gives the true one away."

    def value(self, row: Mapping[str, Any]) -> float | None:
        """Return leak@k of a question."""
        sampled, leaking = row.get("sampled"), row.get("leaking")
        return None if sampled is None or leaking is None else leak_at_k(int(sampled), int(leaking), self.k)


class ROUGEF1(RowMean):
    """Mean ROUGE-L F1 of the generated answers, as in MUSE's KnowMem."""

    field = "rouge"
    label = "ROUGE-L F1"
    meaning = "ROUGE-L F1 between the true answer and the model's own (MUSE's KnowMem, as a share)."
    remembers = 1


METRICS: dict[str, type[RowValues]] = {
    "rouge": ROUGERecall,
    "probability": Probability,
    "extraction_strength": ExtractionStrength,
    "exact_memorization": ExactMemorization,
    "truth_ratio": TruthRatio,
    "truth_ratio_prob_mean": TruthProbability,
    "rouge_f1": ROUGEF1,
    "min_k": MinK,
    "min_k_plus_plus": MinKPlusPlus,
}
"""Memorisation metrics of TOFU, MUSE and user data, by their name in the option ``metrics``."""


def metric_class(name: str) -> type[RowValues]:
    """Return the class of a metric, given its name or class path.

    Raises:
        InputError: The name is unknown, or the class cannot be imported.
    """
    if name in METRICS:
        return METRICS[name]
    if "." not in name:
        raise InputError(f"metrics has {name!r}; it may have {', '.join(METRICS)}, or the class of a metric over rows.")
    found: type[RowValues] = import_class(name, RowValues)
    return found


class _OfMetrics(Metric):
    """Base of the scores that combine one metric's values on several sets.

    Args:
        metrics: Metrics of one class, each over one set that is to be forgotten.
    """

    full_state_update = False
    higher_is_better: bool | None = True
    label = meaning = reason = ""

    def __init__(self, metrics: Sequence[RowValues]) -> None:
        super().__init__()
        self.inner = torch.nn.ModuleList(metrics)
        [first, *_] = metrics
        self.about = meanings("", first)[""]
        self.sign = -1 if self.about.higher_is_better else 1  # a metric that grows as the model forgets is negated
        self.what = first.label or type(first).__name__

    @property
    def metrics(self) -> list[RowValues]:
        """The metric on each set."""
        return list(self.inner)  # type: ignore[arg-type]

    def update(self, rows: Rows) -> None:
        """Add evaluated rows by the name of their set."""
        for metric in self.metrics:
            metric.update(rows)

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        for metric in self.metrics:
            metric.reset()

    def memory(self) -> list[float]:
        """Return the metric's value on each set, with a sign so that higher means more memory; NaN without rows."""
        values = (type(one).compute(one) if one.resampling else one.compute() for one in self.metrics)
        return [self.sign * float(value) for value in values]

    def intervals(self, resamples: int, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of the number; see `RowValues.intervals`."""
        return bootstrap(self.metrics, lambda: type(self).compute(self), resamples, seed)

    def _nothing(self, reason: str) -> Tensor:
        self.reason = reason
        return torch.tensor(math.nan, dtype=torch.float64)


class RelearningScore(_OfMetrics):
    """Relearning score R of a metric (`functional.robustness.relearning_score`).

    Args:
        metrics: The metric of the unlearned model before and after relearning, and then both of the retain model.
    """

    meaning = (
        "Gain of the retain model under the same training, divided by the unlearned model's gain, at most 1. "
        "1: the unlearned model relearns no faster than a model that never knew; near 0: the memory was still there."
    )

    def __init__(self, metrics: Sequence[RowValues]) -> None:
        super().__init__(metrics)
        self.label = f"R ({self.what})"

    def compute(self) -> Tensor:
        """R between 0 and 1; NaN without a retain model's curve."""
        before, after, retain_before, retain_after = self.memory()
        if math.isnan(retain_before):
            return self._nothing("no retain model was given to compare the gain with")
        if math.isnan(before + after + retain_after):
            return self._nothing(f"there is no {self.what} of one of the four")
        return torch.tensor(relearning_score(retain_after - retain_before, after - before), dtype=torch.float64)


class QuantizationScore(_OfMetrics):
    """Quantisation score Q of a metric (`functional.robustness.quantization_score`).

    The share forgotten is the metric itself if it grows as the model forgets (truth ratio), otherwise 1 minus it.

    Args:
        metrics: The metric of the unlearned model, before and after quantisation; its values are between 0 and 1.
    """

    meaning = "Share forgotten after quantisation, divided by that before, at most 1. 1: quantisation recovers nothing."

    def __init__(self, metrics: Sequence[RowValues]) -> None:
        super().__init__(metrics)
        self.label = f"Q ({self.what})"

    def compute(self) -> Tensor:
        """Q between 0 and 1."""
        before, after = ((1 if self.sign > 0 else 0) - value for value in self.memory())
        if math.isnan(before + after):
            return self._nothing(f"there is no {self.what} of one of the two")
        return torch.tensor(quantization_score(before, after), dtype=torch.float64)


class WorstCase(_OfMetrics):
    """Value of a metric under the condition that recovers most."""

    meaning = "The value under the condition that recovers most, the plain question included."

    def __init__(self, metrics: Sequence[RowValues]) -> None:
        super().__init__(metrics)
        self.label = f"strongest attack: {self.what}"
        self.unit = self.about.unit

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # a constant of the class in torchmetrics
        """The direction of the metric."""
        return self.about.higher_is_better

    def compute(self) -> Tensor:
        """Value of the metric on the set on which it shows the most memory; NaN without rows."""
        values = [value for value in self.memory() if not math.isnan(value)]
        if not values:
            return self._nothing("no condition has rows")
        return torch.tensor(self.sign * max(values), dtype=torch.float64)


class Robustness(Benchmark):
    """Attacks on the unlearned model and, if given, on the retain model and the target.

    The settings of an evaluation hold the ``models``, the ``numbers`` (names of `METRICS` or class paths) and the
    ``conditions``, each with ``name``, ``title``, ``kind``, ``attack``, and ``steps`` (of a curve) or ``k`` (of
    samples).
    """

    name = "robustness"
    title = "Attacks, and what they recover"
    format = "dipo-lightning/robustness/1"
    row = RobustnessRow
    headline = Headline(forget="worst_rouge", utility="", needs="RobustnessEvaluation, or `dipo-lightning attack`")
    shown = tuple(f"{what}_{name}" for name in METRICS for what in ("unlearned_plain", "worst"))
    hyperparameter_metrics = ("worst_rouge",)
    columns_beside = ("worst_*", "unlearned_samples_leak_at_*", "*_r_*", "*_q_*")

    def sets_of(self, settings: Mapping[str, Any]) -> tuple[RowSet, ...]:
        """Return a set for each model and condition; for a curve, one per step. All hold the same questions."""
        return tuple(
            RowSet(
                name,
                f"{model} model, {titled}",
                f"what must be forgotten ({model} model, {titled})",
                forget=True,
                drawn_as="forget",
            )
            for model in settings.get("models", ("unlearned",))
            for condition in settings.get("conditions", (_PLAIN,))
            for name, titled in _named_sets(model, condition)
        )

    def metrics(self, settings: Mapping[str, Any], retain: EvaluationLog | None = None) -> dict[str, Metric]:
        """Return the metrics of every condition, R of every curve, Q of every quantisation, and the worst case."""
        found: dict[str, Metric] = {}
        sets = {one.name: one for one in self.sets_of(settings)}
        models, conditions = settings.get("models", ("unlearned",)), settings.get("conditions", (_PLAIN,))
        kinds = {short_name(name): metric_class(name) for name in settings.get("numbers", PARTS)}
        asked = [name for name in sets if name.startswith("unlearned_") and not name.endswith("_samples")]
        for part, kind in kinds.items() if asked else ():
            found[f"worst_{part}"] = WorstCase([kind(sets[name]) for name in asked])
        for condition in conditions:
            found |= _scores(condition, sets, models, kinds)
            for model in models:
                for name, _ in _named_sets(model, condition):
                    if condition["kind"] == "samples":
                        found |= {f"{name}_leak_at_{k}": LeakAtK(sets[name], k=k) for k in condition["k"]}
                    else:
                        found |= {f"{name}_{part}": kind(sets[name]) for part, kind in kinds.items()}
        return found

    def prepare(self, sets: Sets, settings: Mapping[str, Any]) -> None:
        """Add the log truth ratio of each row that has wrong answers."""
        add_log_ratios(sets, "geometric")

    def table(self, document: Mapping[str, Any]) -> str:
        """Return a table with a line per condition and a column per model."""
        return markdown_table(document)

    def describe(self, settings: Mapping[str, Any], sets: Sets) -> str:
        """Return the number of conditions and the names of the models."""
        return f"{len(settings.get('conditions', ()))} ways of asking, on {', '.join(settings.get('models', ()))}"


def settings_pictures(settings: Mapping[str, Any], aggregates: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw a picture for each attack, by its name, from the settings and aggregates of an evaluation."""
    attacks = dict.fromkeys(condition["attack"] for condition in settings["conditions"])
    return {
        name: draw(
            settings["models"],
            [one for one in settings["conditions"] if one["attack"] in (name, "plain")],
            aggregates,
            name,
            number_names(settings),
        )
        for name in attacks
        if name != "plain"
    }


def _named_sets(model: str, condition: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names and titles of the sets of a condition on a model."""
    name, title = f"{model}_{condition['name']}", str(condition["title"])
    if condition["kind"] != "curve":
        return [(name, title)]
    return [(f"{name}_step{step}", f"{title}, step {step}") for step in condition.get("steps", ())]


def _scores(
    condition: Mapping[str, Any],
    sets: Mapping[str, RowSet],
    models: Sequence[str],
    kinds: Mapping[str, type[RowValues]],
) -> dict[str, Metric]:
    """Return R of a curve and Q of a rounding; nothing for other conditions, or without the unlearned model."""
    name, steps = condition["name"], condition.get("steps") or ()
    if "unlearned" not in models:
        return {}

    def over(kind: type[RowValues], names: Sequence[str]) -> list[RowValues]:
        return [kind(sets.get(one) or RowSet(one, forget=True)) for one in names]

    if condition["kind"] == "curve" and steps:
        ends = [f"{model}_{name}_step{step}" for model in ("unlearned", "retain") for step in (steps[0], steps[-1])]
        return {f"{name}_r_{part}": RelearningScore(over(kind, ends)) for part, kind in kinds.items()}
    if condition["kind"] == "rounded":
        both = ["unlearned_plain", f"unlearned_{name}"]
        shares = {part: kind for part, kind in kinds.items() if kind.remembers >= 0 and not kind.unit}  # no losses
        return {f"{name}_q_{part}": QuantizationScore(over(kind, both)) for part, kind in shares.items()}
    return {}
