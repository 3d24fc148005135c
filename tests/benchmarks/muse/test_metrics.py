"""The one function from MUSE's rows to its numbers, and its metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score

from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from dipo_lightning.metrics import KnowMem, VerbMem
from dipo_lightning.metrics.functional.muse import muse_stemmer
from dipo_lightning.metrics.functional.rouge import rouge_l
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
    found = [rouge_l([text], [target], stemmer=muse_stemmer(variant)).f1.item() for text, target in TEXTS]
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
