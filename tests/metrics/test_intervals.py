"""Bootstrap intervals against the same drawings by hand, and against the theory of a mean."""

from __future__ import annotations

import math
import zlib
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from dipo_lightning.benchmarks.user_data.metrics import KeptShare
from dipo_lightning.metrics import ForgetQuality, MinK, ModelUtility, PrivLeak

RNG = np.random.default_rng(11)


def rows(values, field="min_k"):
    return [{"index": 7 + 3 * i, field: None if math.isnan(v) else float(v)} for i, v in enumerate(values)]


def filled(metric, **sets):
    metric.update(sets)
    return metric


def drawings(name, size, resamples, seed):
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return [draw.integers(0, size, size) for _ in range(resamples)]


def percentiles(values):
    return pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), rel=1e-12, abs=1e-12)


def test_the_interval_of_a_mean():
    values = RNG.normal(3, 2, 400)
    metric = filled(MinK("rows"), rows=rows(values))
    low, high = metric.intervals(2000, seed=5)[""]
    assert (low, high) == percentiles([values[draw].mean() for draw in drawings("rows", 400, 2000, 5)])
    spread = NormalDist().inv_cdf(0.975) * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.1 * spread)
    assert metric.intervals(2000, seed=5)[""] == (low, high)
    assert metric.intervals(2000, seed=6)[""] != (low, high)


def test_it_leaves_no_trace_and_rows_without_a_number_stay_out():
    values = [1.0, math.nan, 3.0, 5.0]
    metric = filled(MinK("rows"), rows=rows(values))
    metric.compute()
    found = metric.intervals(50)[""]
    drawn = [np.array(values)[draw] for draw in drawings("rows", 4, 50, 0)]
    assert found == percentiles([np.nanmean(one) for one in drawn if not np.isnan(one).all()])
    assert metric.unscored == {"rows": [10]}
    assert metric.compute() == 3
    filled(metric, rows=[{"index": 0, "min_k": 7.0}])
    assert metric.compute() == 4
    assert MinK("rows").intervals(3) == {}


def test_forget_quality_draws_the_rows_of_both_models_together():
    mine, other = RNG.normal(0, 1, 40), RNG.normal(0.8, 1, 40)
    metric = filled(ForgetQuality("forget", rows(other, "log_ratio")), forget=rows(mine, "log_ratio"))
    found = metric.intervals(60, seed=1)
    tests = [ks_2samp(mine[draw], other[draw], method="exact") for draw in drawings("forget", 40, 60, 1)]
    assert set(found) == {"p", "log10_p", "d"}
    assert found["d"] == percentiles([test.statistic for test in tests])
    assert found["log10_p"] == percentiles([math.log10(test.pvalue) for test in tests])
    same = filled(ForgetQuality("forget", rows(mine, "log_ratio")), forget=rows(mine, "log_ratio"))
    assert same.intervals(20) == {"p": (1, 1), "log10_p": (0, 0), "d": (0, 0)}


def test_privleak_draws_each_sample_by_itself_and_both_models_together():
    sets = {name: (RNG.normal(shift, 1, size), RNG.normal(0, 1, size)) for name, shift, size in
            (("members", -0.5, 25), ("others", 0.0, 30))}  # fmt: skip
    retain = {name: rows(both[1]) for name, both in sets.items()}
    metric = PrivLeak("members", "others", retain_rows=retain)
    found = filled(metric, **{name: rows(both[0]) for name, both in sets.items()}).intervals(40, seed=2)
    leaks = []
    for draws in zip(drawings("members", 25, 40, 2), drawings("others", 30, 40, 2), strict=True):
        aucs = [
            roc_auc_score(
                [1] * 25 + [0] * 30,
                np.concatenate([sets[name][model][draw] for name, draw in zip(sets, draws, strict=True)]),
            )
            for model in (0, 1)
        ]
        leaks.append(100 * (aucs[0] - aucs[1]) / aucs[1])
    assert found[""] == percentiles(leaks)
    assert found["auc"][0] < metric.compute()["auc"] < found["auc"][1]
    fixed = filled(PrivLeak("members", "others", auc_retrain=0.5), **{name: rows(b[0]) for name, b in sets.items()})
    assert fixed.intervals(5)["auc_retrain"] == (0.5, 0.5)


def test_model_utility_draws_every_set_by_itself():
    fields = ("nll", "rouge_l_recall", "log_ratio")
    numbers = {name: RNG.uniform(0.1, 0.9, (3, size)) for name, size in (("retain", 12), ("world", 9))}
    sets = {
        name: [{"index": i} | dict(zip(fields, map(float, [a, b, -c]), strict=True)) for i, (a, b, c) in enumerate(n.T)]
        for name, n in numbers.items()
    }
    found = filled(ModelUtility(*sets), **sets).intervals(30)[""]
    utilities = []
    for draws in zip(*(drawings(name, n.shape[1], 30, 0) for name, n in numbers.items()), strict=True):
        parts = []
        for (nll, rouge, ratio), draw in zip(numbers.values(), draws, strict=True):
            parts += [np.exp(-nll[draw]).mean(), rouge[draw].mean(), (1 - np.exp(-ratio[draw])).mean()]
        utilities.append(hmean(parts))
    assert found == percentiles(utilities)


def test_the_order_and_the_sharding_of_the_rows_do_not_show():
    values = RNG.normal(size=9)
    whole = filled(MinK("rows"), rows=rows(values)).intervals(25, seed=4)
    parts = MinK("rows")
    for shard in (rows(values)[5:], rows(values)[:7][::-1]):  # two rows twice
        parts.merge_state(filled(MinK("rows"), rows=shard))
    assert parts.intervals(25, seed=4) == whole


def test_a_number_that_cannot_be_computed_has_no_interval():
    scores = [(0.9, 0.8), (0.5, 0.4), (0.7, None)]
    metric = filled(KeptShare("kept"), kept=[{"index": i, "before": b, "after": a} for i, (b, a) in enumerate(scores)])
    assert math.isnan(metric.compute()["share"])  # a row lost its score; many resamples are without that row
    assert set(metric.intervals(50)) == {"before"}
