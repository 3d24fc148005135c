"""The one function from MUSE's rows to its numbers, and its metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score

from dipo_lightning.benchmarks.muse.metrics import KnowMem, VerbMem
from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from dipo_lightning.metrics.functional.text import rouge_l
from tests.helpers.aggregate import muse

RNG = np.random.default_rng(3)
TEXTS = [("She was running home", "He runs home"), ("nothing", "the old harbour"), ("the sea", "the sea")]


def make_sets(shift):
    sets = {
        name: [{"index": i, "rouge": float(value)} for i, value in enumerate(RNG.uniform(0, 1, 6))]
        for name in ("verbmem", "knowmem_forget", "knowmem_retain")
    }
    for name, offset in (("forget", shift), ("retain", 0.0), ("holdout", 1.0)):
        scores = RNG.normal(2 + offset, 1, 10)
        sets[f"privleak_{name}"] = [{"index": i, "min_k": float(value)} for i, value in enumerate(scores)]
    return sets


def auc(sets):
    scores = [row["min_k"] for name in ("privleak_forget", "privleak_holdout") for row in sets[name]]
    return roc_auc_score([1] * 10 + [0] * 10, scores)


def test_aggregates():
    sets, retrain = make_sets(0.0), make_sets(1.2)
    found = muse(sets, retrain)
    for name in ("verbmem", "knowmem_forget", "knowmem_retain"):
        assert found[name] == pytest.approx(100 * np.mean([row["rouge"] for row in sets[name]]))
    assert found["privleak"] == pytest.approx(100 * (auc(sets) - auc(retrain)) / auc(retrain))
    assert found["privleak"] < 0
    given = muse(sets, variant="open_unlearning", auc_retrain=0.4772)
    assert given["verbmem"] == pytest.approx(found["verbmem"] / 100)
    assert given["privleak"] == pytest.approx(100 * (auc(sets) - 0.4772) / 0.4772)


def test_privleak_without_a_reference_is_absent_and_not_half():
    found = muse(make_sets(0.0))
    assert found["privleak"] is None
    assert "retain model" in found["privleak_absent"]
    assert found["privleak_auc"] > 0


def test_a_retrained_model_that_memorised_all_gives_no_privleak():
    retrain = make_sets(-100.0)
    assert "nothing to divide by" in muse(make_sets(0.0), retrain)["privleak_absent"]


def test_rows_without_a_score_are_named():
    sets = make_sets(0.0)
    sets["verbmem"][2]["rouge"] = None
    found = muse(sets, skipped={"privleak_holdout": [{"index": 10, "reason": "empty"}]})
    assert found["unscored_rows"] == {"verbmem": [2], "privleak_holdout": [10]}
    assert muse({})["verbmem"] is None


@pytest.mark.parametrize("metric_class", [VerbMem, KnowMem])
@pytest.mark.parametrize(("variant", "stemmer", "scale"), [("muse", False, 100), ("open_unlearning", True, 1)])
def test_rouge_metrics_equal_google(metric_class, variant, stemmer, scale):
    google = RougeScorer(["rougeL"], use_stemmer=stemmer)
    expected = scale * np.mean([google.score(target, text)["rougeL"].fmeasure for text, target in TEXTS])
    metric = metric_class("verbmem", variant=variant)
    found = [rouge_l([text], [target], stemmer=stemmer).f1.item() for text, target in TEXTS]
    rows = [{"index": index, "rouge": value} for index, value in enumerate(found)]
    metric.update({"verbmem": rows})
    metric.update({"verbmem": rows[:1]})  # a padded sampler's repetition
    assert metric.compute().item() == pytest.approx(expected, abs=1e-5)


def test_own_log_is_scored(tmp_path):
    sets, retrain = make_sets(0.0), make_sets(1.2)
    stored = muse(sets, retrain)
    for name, content, aggregates in (("log", sets, stored), ("retrain", retrain, {})):
        log = {"format": "dipo-lightning/muse/1", "settings": {"variant": "muse"}, "sets": content}
        (tmp_path / f"{name}.json").write_text(json.dumps(log | {"aggregates": aggregates}))
    found = score(tmp_path / "log.json", tmp_path / "retrain.json")
    assert found["stored_aggregates_hold"] is True
    assert {name: found[name] for name in stored} == stored
    assert score(tmp_path / "retrain.json", auc_retrain=0.5)["stored_aggregates_hold"] is None
    with pytest.raises(InputError, match=r"must be in \(0, 1\]"):
        score(tmp_path / "log.json", auc_retrain=0.0)


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match="it must be muse or open_unlearning"):
        VerbMem("verbmem", variant="tofu")


def test_every_pair_of_texts_is_compared_as_muse_bench_does():
    sets = make_sets(0.0)
    fields = ("nll", "lower", "zlib", *(f"min_{share}" for share in (5, 10, 20, 30, 40, 50, 60)))
    for name in ("forget", "retain", "holdout"):
        for row in sets[f"privleak_{name}"]:
            row |= dict.fromkeys(fields) | {field: float(RNG.integers(0, 5)) for field in fields}
    found = muse(sets)
    for first, second in (("forget", "holdout"), ("forget", "retain"), ("retain", "holdout")):
        one, two = sets[f"privleak_{first}"], sets[f"privleak_{second}"]
        for field in fields:
            pairs = [(a[field] > b[field]) + (a[field] == b[field]) / 2 for a in one for b in two]
            assert found[f"auc_{first}_{second}"][field] == pytest.approx(np.mean(pairs)), (first, second, field)
    for row in sets["privleak_retain"]:
        del row["lower"]
    assert "lower" not in muse(sets)["auc_forget_retain"]


def test_attacks_on_texts_and_memory_of_continuations():
    sets, retrain = make_sets(0.0), make_sets(1.2)
    attacks = {"loss": "nll", "zlib": "zlib", "min_k": "min_k", "min_k_plus_plus": "min_k_plus_plus"}
    for some in (sets, retrain):
        for name in ("forget", "holdout"):
            for row in some[f"privleak_{name}"]:
                row |= {field: float(RNG.normal()) for field in ("nll", "zlib", "min_k_plus_plus")}
    for row in sets["verbmem"]:
        row |= {"exact_memorization": row["index"] / 6, "extraction_strength": 0.5 if row["index"] else None}
    found = muse(sets, retrain)
    label, both = [0] * 10 + [1] * 10, ("privleak_forget", "privleak_holdout")
    for attack, field in attacks.items():
        scores = [row[field] for name in both for row in sets[name]]
        assert found[f"forget_{attack}_auc"] == pytest.approx(roc_auc_score(label, scores)), attack
    differences = [
        row["nll"] - other["nll"] for name in both for row, other in zip(sets[name], retrain[name], strict=True)
    ]
    assert found["forget_reference_auc"] == pytest.approx(roc_auc_score(label, differences))
    assert found["verbmem_exact_memorization"] == pytest.approx(np.mean(np.arange(6) / 6))
    assert found["verbmem_extraction_strength"] == 0.5
    assert "forget_reference_auc" not in muse(sets)
