"""The one function from TOFU's rows to its numbers."""

from __future__ import annotations

import copy
import json
import math

import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from dipo_lightning.errors import InputError
from tests.helpers.aggregate import tofu
from tests.helpers.synthetic import expected, make_sets


@pytest.fixture
def sets():
    return make_sets(5, True)


def ratios(rows):
    return [math.exp(row["correct_nll"] - sum(row["wrong_nll"]) / len(row["wrong_nll"])) for row in rows]


def test_aggregates_equal_an_independent_computation(sets):
    found = tofu(sets)
    independent = expected(sets)
    assert {name: found[name] for name in independent} == pytest.approx(independent, rel=1e-12)
    rows = sets["forget"]
    tokens = sum(row["generation_tokens"] for row in rows)
    surprise = sum(row["generation_nll"] * row["generation_tokens"] for row in rows) / tokens
    assert found["forget_perplexity"] == pytest.approx(math.exp(surprise))
    assert 1 < found["forget_fluency"] < math.log2(6)  # seven words each: at most six pairs and five triples
    assert found["forget_quality"] is None
    assert "no log of a retain model" in found["forget_quality_absent"]
    json.dumps(found, allow_nan=False)


def test_forget_quality_and_privleak_with_a_reference(sets):
    reference = make_sets(6, False)
    found = tofu(sets, reference)
    quality = ks_2samp(ratios(sets["forget"]), ratios(reference["forget"]), method="exact")
    assert found["forget_quality"] == pytest.approx(
        {"p": quality.pvalue, "log10_p": math.log10(quality.pvalue), "d": quality.statistic, "n": 12}
    )
    assert "forget_quality_absent" not in found
    aucs = []
    for those in (sets, reference):
        scores = [row["min_k"] for name in ("forget", "holdout") for row in those[name]]
        aucs.append(roc_auc_score([1] * 12 + [0] * 8, scores))
    assert found["privleak"] == pytest.approx(100 * (aucs[0] - aucs[1]) / aucs[1])
    assert found["forget_min_k_auc"] == pytest.approx(1 - aucs[0])


def test_the_loss_attack_takes_the_mean_loss_whatever_else_is_there(sets):
    for row in (*sets["forget"], *sets["holdout"]):
        row["loss"] = 1000 - row["nll"]
    label = [0] * 12 + [1] * 8
    scores = [row["nll"] for name in ("forget", "holdout") for row in sets[name]]
    assert tofu(sets)["forget_loss_auc"] == pytest.approx(roc_auc_score(label, scores))
    for row in sets["holdout"]:
        del row["nll"]
    scores = [row["loss"] for name in ("forget", "holdout") for row in sets[name]]
    assert tofu(sets)["forget_loss_auc"] == pytest.approx(roc_auc_score(label, scores))


@pytest.mark.parametrize("order", [1, -1])
def test_row_order_does_not_matter(sets, order):
    shuffled = {name: rows[3:] + rows[:3] if order > 0 else rows[::-1] for name, rows in sets.items()}
    assert tofu(shuffled, make_sets(6, False)) == tofu(sets, make_sets(6, False))


def test_a_row_without_a_number_is_left_out_everywhere_in_its_set_and_named(sets):
    smaller = copy.deepcopy(sets)
    del smaller["retain"][4]
    sets["retain"][4]["nll"] = None
    found, without = tofu(sets), tofu(smaller)
    assert found.pop("unscored_rows") == {"retain": [4]}
    assert found == without


def test_skipped_rows_count_as_present_in_both_and_scored_in_neither(sets):
    reference = make_sets(6, False)
    missing = sets["forget"].pop(2)
    with pytest.raises(InputError, match="11 here, 12 in the retain model's log.*row 2"):
        tofu(sets, reference)
    skipped = {"forget": [{"index": missing["index"], "reason": "the answer has no tokens"}]}
    found = tofu(sets, reference, skipped=skipped)
    assert found["forget_quality"]["n"] == 11
    assert found["unscored_rows"] == {"forget": [2]}


def test_a_row_twice_is_refused(sets):
    sets["world_facts"].append(sets["world_facts"][0])
    with pytest.raises(InputError, match="'world_facts': row 0 occurs twice"):
        tofu(sets)


def test_a_collapsed_model_gives_numbers(sets):
    for name in ("forget", "retain", "real_authors", "world_facts"):
        for row in sets[name]:
            row["nll"] += 3000
            row["correct_nll"] += 3000
            row["wrong_nll"] = [value + 3000 for value in row["wrong_nll"]]
            row["rouge_l_recall"] = 0.0
    found = tofu(sets, make_sets(6, False), "arithmetic")
    assert found["model_utility"] == 0
    assert found["forget_quality"]["n"] == 12
    assert 0 < found["forget_truth_ratio"] <= 1


def test_what_is_absent_is_said(sets):
    del sets["world_facts"]
    for row in sets["retain"]:
        row["rouge_l_recall"] = None
    found = tofu(sets, {"retain": []})
    assert found["model_utility"] is None
    assert "retain_rouge, world_facts_probability" in found["model_utility_absent"]
    assert found["retain_probability"] == pytest.approx(expected(make_sets(5, True))["retain_probability"])
    assert "retain model's log has no forget rows" in found["forget_quality_absent"]
    assert "unscored_rows" not in found
    assert "forget rows" in tofu({}, sets)["forget_quality_absent"]


def test_a_ready_ratio_serves_only_its_own_variant():
    rows = {"forget": [{"index": 0, "truth_ratio": 0.5}, {"index": 1, "truth_ratio": 0.0}]}
    assert tofu(rows, truth_ratio="open_unlearning")["forget_truth_ratio"] == 0.25
    with pytest.raises(InputError, match="use truth_ratio='open_unlearning'"):
        tofu(rows)


@pytest.mark.parametrize(("variant", "epsilon"), [("geometric", 0.0), ("open_unlearning", 1e-10)])
def test_prob_mean(sets, variant, epsilon):
    shares = []
    for row in sets["forget"]:
        correct, wrong = math.exp(-row["correct_nll"]), math.exp(-sum(row["wrong_nll"]) / len(row["wrong_nll"]))
        shares.append(correct / (correct + wrong + epsilon))
    found = tofu(sets, truth_ratio=variant)
    assert found["forget_truth_ratio_prob_mean"] == pytest.approx(sum(shares) / len(shares), rel=1e-12)


def test_the_reference_attack_of_a_log_and_of_its_own_numbers(sets):
    reference = make_sets(6, False)
    both = ("forget", "holdout")
    gaps = [row["nll"] - other["nll"] for name in both for row, other in zip(sets[name], reference[name], strict=True)]
    expected = roc_auc_score([0] * 12 + [1] * 8, gaps)
    assert tofu(sets, reference)["forget_reference_auc"] == pytest.approx(expected)
    assert "forget_reference_auc" not in tofu(sets)
    foreign = {name: [{"index": row["index"], "loss": row["nll"]} for row in reference[name]] for name in both}
    assert tofu(sets, foreign)["forget_reference_auc"] == pytest.approx(expected)
    for row in (*sets["forget"], *sets["holdout"]):
        row["reference"] = -row["nll"]
    scores = [row["reference"] for name in both for row in sets[name]]
    assert tofu(sets)["forget_reference_auc"] == pytest.approx(roc_auc_score([0] * 12 + [1] * 8, scores))
