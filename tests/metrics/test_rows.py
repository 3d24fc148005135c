"""Rows count once, whatever their order and on however many processes they were seen."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dipo_lightning import metrics
from dipo_lightning.errors import InputError
from dipo_lightning.metrics import RowMean

ROWS = st.dictionaries(st.integers(0, 2**40), st.floats(-1e6, 1e6), min_size=1, max_size=12)


class Value(RowMean):
    field = "value"

    def __init__(self):
        super().__init__("rows")


def filled(metric, pairs):
    metric.update({"rows": [{"index": index, "value": value} for index, value in pairs]})
    return metric


@settings(deadline=None)
@given(rows=ROWS, data=st.data())
def test_any_order_sharding_and_repetition_gives_the_same_bits(rows, data):
    pairs = list(rows.items())
    whole = filled(Value(), pairs).compute()
    assert whole.item() == pytest.approx(math.fsum(rows.values()) / len(rows), rel=1e-9, abs=1e-9)
    repeated = data.draw(st.permutations(pairs + data.draw(st.lists(st.sampled_from(pairs), max_size=5))))
    ranks = data.draw(st.integers(1, 5))
    merged = Value()
    for rank in range(ranks):  # a rank may be without rows
        merged.merge_state(filled(Value(), repeated[rank::ranks]))
    assert torch.equal(merged.compute(), whole)


def test_merging_after_compute_is_seen():
    metric = filled(Value(), [(0, 1.0)])
    assert metric.compute() == 1
    metric.merge_state(filled(Value(), [(1, 3.0)]))
    assert metric.compute() == 2


def test_different_values_of_a_row_do_not_depend_on_the_order():
    first, second = [(3, 1.0), (3, 2.0), (4, 5.0)], [(4, 5.0), (3, 2.0), (3, 1.0)]
    assert torch.equal(filled(Value(), first).compute(), filled(Value(), second).compute())


def test_a_number_wins_over_a_nan_of_the_same_row():
    metric = filled(Value(), [(3, math.nan), (3, 2.0)])
    assert metric.compute() == 2
    assert metric.unscored == {}


def test_rows_without_a_number_are_left_out_and_named():
    metric = filled(Value(), [(5, math.nan), (1, 4.0), (2, 2.0), (9, None)])
    assert metric.compute() == 3
    assert metric.unscored == {"rows": [5, 9]}
    metric.reset()
    assert metric.unscored == {}
    assert torch.isnan(filled(metric, []).compute())


def test_a_module_in_bfloat16_does_not_blur_the_indices():
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.metric = filled(Value(), [(1_000_001, 1.0), (1_000_002, 1 / 3)])

    expected = filled(Value(), [(1_000_001, 1.0), (1_000_002, 1 / 3)]).compute()
    holder = Holder().to(torch.bfloat16)
    assert holder.metric.compute() == expected
    filled(holder.metric, [(1_000_003, 1.0)])
    assert holder.metric.table()["index"].tolist() == [1_000_001, 1_000_002, 1_000_003]


def test_forward_returns_the_batch_and_keeps_all():
    metric = Value()
    assert metric({"rows": [{"index": 0, "value": 1.0}, {"index": 1, "value": 3.0}]}) == 2
    assert metric({"rows": [{"index": 2, "value": 8.0}]}) == 8
    assert metric.compute() == 4


def test_metrics_can_be_pickled_with_their_rows():
    metric = filled(Value(), [(0, 1.0)])
    assert pickle.loads(pickle.dumps(metric)).compute() == 1


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="negative"):
        filled(Value(), [(-1, 1.0)])


def test_forget_quality_refuses_other_rows_than_the_retain_model_has():
    retain = [{"index": index, "log_ratio": 0.1 * index} for index in range(3)]
    quality = metrics.ForgetQuality("forget", retain)
    quality.update({"forget": retain[:2]})
    with pytest.raises(InputError, match="2 here, 3 in the retain model's log.*row 2"):
        quality.compute()


def test_options_are_checked():
    with pytest.raises(InputError, match="unknown truth ratio"):
        metrics.ModelUtility("retain", variant="harmonic")


def test_a_metric_takes_only_its_sets():
    metric = metrics.Fluency("forget")
    rows = {"forget": [{"index": 0, "generation": "one two three"}], "retain": [{"index": 0, "generation": "a"}]}
    metric.update(rows | {"other": [{"index": 5}]})
    assert metric.compute() == pytest.approx(1 / 3)  # two bigrams: 1 bit, of the weight 2/3 over 2 sizes


def test_every_name_of_the_package_is_there():
    assert all(isinstance(getattr(metrics, name), type) for name in metrics.__all__)
