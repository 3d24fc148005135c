"""Numbers of attacks from rows made by hand: R, Q and the strongest attack, of every metric of choice."""

from __future__ import annotations

import math

import pytest

from dipo_lightning.benchmarks.robustness.attack import Subject
from dipo_lightning.benchmarks.robustness.metrics import METRICS, Robustness, metric_class
from dipo_lightning.benchmarks.robustness.running import planned
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import log_aggregates
from dipo_lightning.metrics import Probability, RowMean

CURVE = {"name": "relearn", "title": "relearning", "kind": "curve", "attack": "relearning", "steps": [0, 1, 4]}
ROUNDED = {"name": "int8", "title": "weights in int8", "kind": "rounded", "attack": "quantization"}
PLAIN = {"name": "plain", "title": "plain question", "kind": "answers", "attack": "plain"}
FIELDS = {
    "probability": lambda value: {"nll": -math.log(value)},
    "rouge": lambda value: {"rouge_l_recall": value},
    "extraction_strength": lambda value: {"extraction_strength": value},
    "exact_memorization": lambda value: {"exact_memorization": value},
    "rouge_f1": lambda value: {"rouge": value},
    "truth_ratio": lambda value: {"correct_nll": 0.0, "wrong_nll": [-math.log(value)]},
    "truth_ratio_prob_mean": lambda value: {"correct_nll": -math.log(value), "wrong_nll": [-math.log(1 - value)]},
    "min_k": lambda value: {"min_k": value},
    "min_k_plus_plus": lambda value: {"min_k_plus_plus": value},
}
FALLS = ("truth_ratio", "min_k", "min_k_plus_plus")
"""Metrics that fall as a model remembers more."""


class Shouted(RowMean):
    """A metric of a user: the share of capitals in what the model says."""

    remembers = 1

    def value(self, row):
        text = row["generation"]
        return sum(letter.isupper() for letter in text) / len(text)


def aggregates(metric, values, models=("unlearned", "retain")):
    sets = {name: [{"index": 0, **FIELDS[metric](value)}] for name, value in values.items()}
    settings = {"models": models, "numbers": [metric], "conditions": [PLAIN, ROUNDED, CURVE]}
    return log_aggregates(Robustness(), sets, settings)


def test_every_metric_has_rows_made_by_hand():
    assert FIELDS.keys() == METRICS.keys()


@pytest.mark.parametrize("metric", FIELDS)
def test_r_is_the_gain_of_the_retain_model_over_that_of_the_unlearned_one(metric):
    unlearned, retain = ((0.6, 0.4, 0.2), (0.3, 0.3, 0.1)) if metric in FALLS else ((0.2, 0.4, 0.6), (0.1, 0.1, 0.3))
    values = {f"unlearned_relearn_step{step}": value for step, value in zip((0, 1, 4), unlearned, strict=True)}
    values |= {f"retain_relearn_step{step}": value for step, value in zip((0, 1, 4), retain, strict=True)}
    found = aggregates(metric, values)
    assert found[f"relearn_r_{metric}"] == pytest.approx(0.5)  # 0.2 / 0.4
    for name, value in values.items():
        assert found[f"{name}_{metric}"] == pytest.approx(value), "both curves stand beside it"


@pytest.mark.parametrize("metric", FIELDS)
def test_q_is_the_share_forgotten_after_over_before(metric):
    falls = metric in FALLS
    values = {"unlearned_plain": 0.6 if falls else 0.2, "unlearned_int8": 0.15 if falls else 0.6}
    found = aggregates(metric, values, ("unlearned",))
    if metric.startswith("min_k"):
        assert f"int8_q_{metric}" not in found, "a loss is no share"
    else:
        assert found[f"int8_q_{metric}"] == pytest.approx(0.15 / 0.6 if falls else (1 - 0.6) / (1 - 0.2))
    assert found[f"worst_{metric}"] == pytest.approx(0.15 if falls else 0.6)


def test_r_and_q_have_intervals():
    names = ["unlearned_relearn_step0", "unlearned_relearn_step4", "retain_relearn_step0", "retain_relearn_step4"]
    values = ((0.1, 0.3), (0.5, 0.9), (0.1, 0.1), (0.3, 0.3))  # a row gains 0.4 or 0.6, and 0.2
    sets = {
        name: [{"index": index, "nll": -math.log(value)} for index, value in enumerate(some)]
        for name, some in zip(names, values, strict=True)
    }
    settings = {"models": ["unlearned", "retain"], "numbers": ["probability"], "conditions": [CURVE]}
    found = log_aggregates(Robustness(), sets, settings, bootstrap=(200, 0))
    assert found["relearn_r_probability"] == pytest.approx(0.2 / 0.5)
    low, high = found["intervals"]["relearn_r_probability"]
    assert low == pytest.approx(0.2 / 0.6)
    assert high == pytest.approx(0.2 / 0.4)


def test_every_model_and_condition_is_drawn_on_the_same_rows():
    rows = [{"index": index, "nll": -math.log(value)} for index, value in enumerate((0.1, 0.4, 0.5, 0.9, 0.95))]
    sets = {name: [dict(row) for row in rows] for name in ("unlearned_plain", "unlearned_int8", "retain_plain")}
    settings = {"models": ["unlearned", "retain"], "numbers": ["probability"], "conditions": [PLAIN, ROUNDED]}
    found = log_aggregates(Robustness(), sets, settings, bootstrap=(100, 0))["intervals"]
    assert found["int8_q_probability"] == [1, 1]
    assert found["unlearned_plain_probability"] == found["unlearned_int8_probability"]
    assert found["unlearned_plain_probability"] == found["retain_plain_probability"]
    alone = Probability("forget")
    alone.update({"forget": rows})
    assert found["retain_plain_probability"] == [*alone.intervals(100)[""]], "the rows that TOFU draws, too"


def test_a_metric_of_a_user_has_r_as_well():
    path = f"{__name__}.Shouted"
    texts = {"unlearned_relearn_step0": "ab", "unlearned_relearn_step4": "AB"}
    texts |= {"retain_relearn_step0": "ab", "retain_relearn_step4": "Ab"}
    sets = {name: [{"index": 0, "generation": text}] for name, text in texts.items()}
    settings = {"models": ["unlearned", "retain"], "numbers": [path], "conditions": [CURVE]}
    assert log_aggregates(Robustness(), sets, settings)["relearn_r_shouted"] == 0.5


@pytest.mark.parametrize(
    ("names", "message"),
    [(("bleu",), "metrics has 'bleu'; it may have rouge, probability"), (("pathlib.Path",), "is not a dipo_lightning"),
     (("nowhere.Metric",), "cannot be imported"), ((), "metrics is empty")],
)  # fmt: skip
def test_an_unknown_metric_is_refused(names, message):
    with pytest.raises(InputError, match=message):
        planned([], Subject(None, [], metrics=names))


def test_names_stand_for_classes_of_the_package():
    assert {name: metric_class(name) for name in METRICS} == METRICS
