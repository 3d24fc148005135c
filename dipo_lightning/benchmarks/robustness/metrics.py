"""Sets, numbers and logs of attacks: every condition on every model, leak@k, and the scores R and Q."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torchmetrics import Metric

from dipo_lightning.benchmarks.robustness.pictures import draw
from dipo_lightning.benchmarks.robustness.tables import PARTS, markdown_table
from dipo_lightning.evaluation.benchmark import Benchmark, Headline
from dipo_lightning.evaluation.rows import EvaluationLog, Row, Sets
from dipo_lightning.metrics import ExtractionStrength, Probability, ROUGERecall, RowMean, RowSet, RowValues
from dipo_lightning.metrics.base import mean_or_nan
from dipo_lightning.metrics.functional.robustness import leak_at_k, quantization_score, relearning_score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: dict[str, type[RowValues]] = dict(zip(PARTS, (Probability, ROUGERecall, ExtractionStrength), strict=True))

_PLAIN = {"name": "plain", "title": "plain question", "kind": "answers", "attack": "plain"}


class RobustnessRow(Row, total=False):
    """A question under attack.

    Attributes:
        sampled: Answers that were sampled to it.
        leaking: Those among them that leak.
    """

    sampled: float | None
    leaking: float | None


class LeakAtK(RowMean):
    """Mean leak@k over questions (arXiv 2511.04934).

    Args:
        *sets: The set of sampled answers.
        k: Answers that an attacker draws.
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


class _OfMeans(RowValues):
    """A number made of the means of several sets."""

    higher_is_better = True

    def __init__(self, *sets: RowSet | str, part: str, **options: Any) -> None:
        super().__init__(*sets, **options)
        self.part = part

    def values(self, row: Mapping[str, Any], of: RowSet) -> Sequence[float | None]:
        """Return the row's number."""
        if self.part == "probability":
            return (None if row.get("nll") is None else math.exp(-row["nll"]),)
        return (row.get("rouge_l_recall" if self.part == "rouge" else self.part),)

    def means(self) -> list[float]:
        """Return the mean of each set; NaN for one without rows."""
        table = self.scored()
        groups = (table["number"][table["group"] == place] for place in range(len(self.sets)))
        return [mean_or_nan(group).item() for group in groups]


class RelearningScore(_OfMeans):
    """R of a number that grows with memory: see `functional.robustness.relearning_score`.

    Args:
        *sets: The unlearned model before and after relearning, then the retain model's two.
        part: The number: ``probability``, ``rouge`` or ``extraction_strength``.
        **options: See `RowValues`.
    """

    meaning = (
        "How much a model that never knew gains by the same training, over what the unlearned model gains, at most 1. "
        "1: it learns it anew; near 0: it was there all the time."
    )

    def __init__(self, *sets: RowSet | str, part: str, **options: Any) -> None:
        super().__init__(*sets, part=part, **options)
        self.label = f"R ({part.replace('_', ' ')})"

    def compute(self) -> Tensor:
        """R between 0 and 1; NaN without a retain model's curve."""
        before, after, retain_before, retain_after = self.means()
        if math.isnan(retain_before):
            return self._nothing("no retain model was given to compare the gain with")
        return self._scalar(relearning_score(retain_after - retain_before, after - before))


class QuantizationScore(_OfMeans):
    """Q of the share forgotten, 1 - number: see `functional.robustness.quantization_score`.

    Args:
        *sets: The unlearned model as it is, and with rounded weights.
        part: The number: ``probability``, ``rouge`` or ``extraction_strength``.
        **options: See `RowValues`.
    """

    meaning = "Share forgotten after rounding the weights over that before, at most 1. 1: rounding brings nothing back."

    def __init__(self, *sets: RowSet | str, part: str, **options: Any) -> None:
        super().__init__(*sets, part=part, **options)
        self.label = f"Q ({part.replace('_', ' ')})"

    def compute(self) -> Tensor:
        """Q between 0 and 1."""
        before, after = self.means()
        return self._scalar(quantization_score(1 - before, 1 - after))


class WorstCase(_OfMeans):
    """The largest mean of a number over all conditions: what the best of the attacks brings back."""

    higher_is_better = False
    meaning = "The largest value over everything that was tried, the plain question included."

    def __init__(self, *sets: RowSet | str, part: str, **options: Any) -> None:
        super().__init__(*sets, part=part, **options)
        self.label = f"strongest attack: {'ROUGE-L recall' if part == 'rouge' else part.replace('_', ' ')}"

    def compute(self) -> Tensor:
        """The largest mean; NaN without rows."""
        means = [mean for mean in self.means() if not math.isnan(mean)]
        return self._scalar(max(means)) if means else self._nothing("no condition has rows")


class Robustness(Benchmark):
    """Attacks on the unlearned model, and the same on the retain model and the target where they are given.

    The settings of an evaluation say what was tried: ``models``, and ``conditions``, each with ``name``, ``title``,
    ``kind``, ``attack``, and ``steps`` (of a curve) or ``k`` (of samples).
    """

    name = "robustness"
    title = "What was tried to get it back, and what came back"
    format = "dipo-lightning/robustness/1"
    row = RobustnessRow
    headline = Headline(forget="worst_rouge", utility="", needs="RobustnessEvaluation, or `dipo-lightning attack`")
    shown = ("unlearned_plain_rouge", "worst_rouge", "unlearned_plain_probability", "worst_probability")
    hyperparameter_metrics = ("worst_rouge",)
    columns_beside = ("worst_*", "unlearned_samples_leak_at_*", "*_r_rouge", "*_q_rouge")

    def sets_of(self, settings: Mapping[str, Any]) -> tuple[RowSet, ...]:
        """Return a set for each model and condition, for a curve one for each step."""
        return tuple(
            RowSet(name, f"{model} model, {titled}", f"what must be forgotten ({model} model, {titled})", True)
            for model in settings.get("models", ("unlearned",))
            for condition in settings.get("conditions", (_PLAIN,))
            for name, titled in _named_sets(model, condition)
        )

    def metrics(self, settings: Mapping[str, Any], retain: EvaluationLog | None = None) -> dict[str, Metric]:
        """Return the numbers of every condition, R of every curve, Q of every rounding, and the strongest attack's."""
        found: dict[str, Metric] = {}
        sets = {one.name: one for one in self.sets_of(settings)}
        models, conditions = settings.get("models", ("unlearned",)), settings.get("conditions", (_PLAIN,))
        asked = [name for name in sets if name.startswith("unlearned_") and not name.endswith("_samples")]
        for part in ("rouge", "probability"):
            found[f"worst_{part}"] = WorstCase(*(sets[name] for name in asked), part=part)
        for condition in conditions:
            found |= _scores(condition, sets, models)
            for model in models:
                for name, _ in _named_sets(model, condition):
                    if condition["kind"] == "samples":
                        found |= {f"{name}_leak_at_{k}": LeakAtK(sets[name], k=k) for k in condition["k"]}
                    else:
                        found |= {f"{name}_{part}": kind(sets[name]) for part, kind in KINDS.items()}
        return found

    def table(self, document: Mapping[str, Any]) -> str:
        """Return a line for each condition, a column for each model."""
        return markdown_table(document)

    def describe(self, settings: Mapping[str, Any], sets: Sets) -> str:
        """Return how much was tried."""
        return f"{len(settings.get('conditions', ()))} ways of asking, on {', '.join(settings.get('models', ()))}"


def settings_pictures(settings: Mapping[str, Any], aggregates: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw a picture for each attack.

    Args:
        settings: Of the evaluation.
        aggregates: Its numbers.

    Returns:
        Figures by the attack's name.
    """
    attacks = dict.fromkeys(condition["attack"] for condition in settings["conditions"])
    return {
        name: draw(
            settings["models"],
            [one for one in settings["conditions"] if one["attack"] in (name, "plain")],
            aggregates,
            name,
        )
        for name in attacks
        if name != "plain"
    }


def _named_sets(model: str, condition: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and titles of the sets of a condition on a model."""
    name, title = f"{model}_{condition['name']}", str(condition["title"])
    if condition["kind"] != "curve":
        return [(name, title)]
    return [(f"{name}_step{step}", f"{title}, step {step}") for step in condition.get("steps", ())]


def _scores(condition: Mapping[str, Any], sets: Mapping[str, RowSet], models: Sequence[str]) -> dict[str, Metric]:
    """R of a curve, Q of a rounding; nothing for other conditions, or where the unlearned model was not attacked."""
    name, steps = condition["name"], condition.get("steps") or ()
    if "unlearned" not in models:
        return {}
    if condition["kind"] == "curve" and steps:
        ends = [f"{model}_{name}_step{step}" for model in ("unlearned", "retain") for step in (steps[0], steps[-1])]
        chosen = [sets.get(one, one) for one in ends]
        return {f"{name}_r_{part}": RelearningScore(*chosen, part=part) for part in PARTS}
    if condition["kind"] == "rounded":
        chosen = [sets["unlearned_plain"], sets[f"unlearned_{name}"]]
        return {f"{name}_q_{part}": QuantizationScore(*chosen, part=part) for part in PARTS}
    return {}
