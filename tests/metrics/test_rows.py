"""Rows count once, whatever their order and on however many processes they were seen."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dipo_lightning import metrics
from dipo_lightning.benchmarks.tofu import metrics as tofu
from dipo_lightning.errors import InputError
from dipo_lightning.metrics import RowMean
from tests.helpers.synthetic import make_sets

ROWS = st.dictionaries(st.integers(0, 2**40), st.floats(-1e6, 1e6), min_size=1, max_size=12)


def filled(metric, pairs):
    if pairs:
        index, value = zip(*pairs, strict=True)
        metric.update(torch.tensor(index), torch.tensor(value, dtype=torch.float64))
    return metric


@settings(deadline=None)
@given(rows=ROWS, data=st.data())
def test_any_order_sharding_and_repetition_gives_the_same_bits(rows, data):
    pairs = list(rows.items())
    whole = filled(RowMean(), pairs).compute()
    assert whole.item() == pytest.approx(math.fsum(rows.values()) / len(rows), rel=1e-9, abs=1e-9)
    repeated = data.draw(st.permutations(pairs + data.draw(st.lists(st.sampled_from(pairs), max_size=5))))
    ranks = data.draw(st.integers(1, 5))
    merged = RowMean()
    for rank in range(ranks):  # a rank may be without rows
        merged.merge_state(filled(RowMean(), repeated[rank::ranks]))
    assert torch.equal(merged.compute(), whole)


def test_merging_after_compute_is_seen():
    metric = filled(RowMean(), [(0, 1.0)])
    assert metric.compute() == 1
    metric.merge_state(filled(RowMean(), [(1, 3.0)]))
    assert metric.compute() == 2


def test_different_values_of_a_row_do_not_depend_on_the_order():
    first, second = [(3, 1.0), (3, 2.0), (4, 5.0)], [(4, 5.0), (3, 2.0), (3, 1.0)]
    assert torch.equal(filled(RowMean(), first).compute(), filled(RowMean(), second).compute())


def test_a_number_wins_over_a_nan_of_the_same_row():
    metric = filled(RowMean(), [(3, math.nan), (3, 2.0)])
    assert metric.compute() == 2
    assert metric.unscored.tolist() == []


def test_nan_rows_are_left_out_and_named():
    metric = filled(RowMean(), [(5, math.nan), (1, 4.0), (2, 2.0), (9, math.nan)])
    assert metric.compute() == 3
    assert metric.unscored.tolist() == [5, 9]
    metric.reset()
    assert metric.unscored.tolist() == []
    metric.update(torch.empty(0), torch.empty(0))
    assert torch.isnan(metric.compute())


def test_nan_rows_raise_where_asked_with_the_row():
    metric = filled(RowMean(nan="raise"), [(5, math.nan), (1, 4.0)])
    with pytest.raises(InputError, match="row 5"):
        metric.compute()
    with pytest.raises(InputError, match="skip or raise"):
        RowMean(nan="ignore")


def test_a_module_in_bfloat16_does_not_blur_the_indices():
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.metric = filled(RowMean(), [(1_000_001, 1.0), (1_000_002, 1 / 3)])

    expected = filled(RowMean(), [(1_000_001, 1.0), (1_000_002, 1 / 3)]).compute()
    holder = Holder().to(torch.bfloat16)
    assert holder.metric.compute() == expected
    filled(holder.metric, [(1_000_003, 1.0)])
    assert holder.metric.rows()["index"].tolist() == [1_000_001, 1_000_002, 1_000_003]


def test_forward_returns_the_batch_and_keeps_all():
    metric = RowMean()
    assert metric(torch.tensor([0, 1]), torch.tensor([1.0, 3.0])) == 2
    assert metric(torch.tensor([2]), torch.tensor([8.0])) == 8
    assert metric.compute() == 4


def test_metrics_can_be_pickled_with_their_rows():
    metric = filled(RowMean(), [(0, 1.0)])
    assert pickle.loads(pickle.dumps(metric)).compute() == 1


def test_wrong_updates_are_refused():
    with pytest.raises(ValueError, match="one value a row"):
        RowMean().update(torch.tensor([0, 1]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="negative"):
        RowMean().update(torch.tensor([-1]), torch.tensor([1.0]))


def tensor(rows, key):
    return torch.tensor([row[key] for row in rows], dtype=torch.float64)


def test_classes_agree_with_the_aggregate_function():
    sets, reference = make_sets(3, True), make_sets(4, False)
    found = tofu.aggregate(sets, reference)
    utility = metrics.ModelUtility()
    for name in ("forget", "retain", "real_authors", "world_facts"):
        rows = sets[name]
        index, nll, wrong = tensor(rows, "index").long(), tensor(rows, "nll"), tensor(rows, "wrong_nll")
        if name in ("real_authors", "world_facts"):
            probability = metrics.NormalizedProbability()
            probability.update(index, nll, wrong)
        else:
            probability = metrics.Probability()
            probability.update(index, nll)
        assert probability.compute().item() == pytest.approx(found[f"{name}_probability"], rel=1e-12)
        ratio = metrics.TruthRatio("forget" if name == "forget" else "utility")
        ratio.update(index, tensor(rows, "correct_nll"), wrong)
        assert ratio.compute().item() == pytest.approx(found[f"{name}_truth_ratio"], rel=1e-12)
        rouge = metrics.ROUGERecall()
        rouge.update(index, [row["generation"] for row in rows], [row["answer"] for row in rows])
        assert rouge.compute().item() == pytest.approx(found[f"{name}_rouge"], abs=1e-6)
        if name != "forget":
            utility.update(name, index, nll, tensor(rows, "correct_nll"), wrong, tensor(rows, "rouge_l_recall"))
            if name != "world_facts":
                assert torch.isnan(utility.compute())
    assert utility.compute().item() == pytest.approx(found["model_utility"], rel=1e-12)
    rows = sets["forget"]
    for key, metric in (
        ("exact_memorization", metrics.ExactMemorization()),
        ("extraction_strength", metrics.ExtractionStrength()),
    ):
        metric.update(tensor(rows, "index"), tensor(rows, key))
        assert metric.compute().item() == pytest.approx(found[f"forget_{key}"], rel=1e-12)
    fluency, perplexity = metrics.Fluency(), metrics.Perplexity()
    fluency.update(tensor(rows, "index"), [row["generation"] for row in rows])
    perplexity.update(*(tensor(rows, key) for key in ("index", "generation_nll", "generation_tokens")))
    assert fluency.compute().item() == pytest.approx(found["forget_fluency"], rel=1e-12)
    assert perplexity.compute().item() == pytest.approx(found["forget_perplexity"], rel=1e-12)
    others = {row["index"]: tofu.row_log_ratio(row, "geometric") for row in reference["forget"]}
    quality = metrics.ForgetQuality(others)
    quality.update(tensor(rows, "index"), tensor(rows, "correct_nll"), tensor(rows, "wrong_nll"))
    assert {name: value.item() for name, value in quality.compute().items()} == pytest.approx(found["forget_quality"])


def test_forget_quality_refuses_other_rows_than_the_reference_has():
    quality = metrics.ForgetQuality({0: 0.1, 1: 0.2, 2: 0.3})
    quality.update(torch.tensor([0, 1]), torch.zeros(2), torch.ones(2, 5))
    with pytest.raises(InputError, match="2 rows here, 3 in the reference.*row 2"):
        quality.compute()
    with pytest.raises(InputError, match="retain model"):
        metrics.ForgetQuality({})


def test_options_are_checked():
    with pytest.raises(InputError, match="forget or utility"):
        metrics.TruthRatio("retain")
    with pytest.raises(InputError, match="unknown truth ratio"):
        metrics.ModelUtility("harmonic")
    with pytest.raises(InputError, match="muse, open_unlearning"):
        metrics.VerbMem("tofu")
    with pytest.raises(ValueError, match="not part of model utility"):
        metrics.ModelUtility().update("forget", *[torch.zeros(1)] * 5)


def test_names_of_the_package_are_what_it_says():
    assert all(isinstance(getattr(metrics, name), type) for name in metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        metrics.Surprise  # noqa: B018
