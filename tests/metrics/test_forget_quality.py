"""The two-sample test, exact where floating point is not."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from dipo_lightning.metrics import ForgetQuality
from dipo_lightning.metrics.functional import forget_quality
from dipo_lightning.metrics.functional.answers import ks_log_probability


def scipy_test(first, second):
    with warnings.catch_warnings():
        # scipy falls back to the asymptotic p for some tiny D, and says so.
        warnings.simplefilter("error", RuntimeWarning)
        return ks_2samp(first, second, method="exact")


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 250), shift=st.floats(0, 3), digits=st.sampled_from([1, 8]))
def test_equals_scipy_with_and_without_ties(seed, n, shift, digits):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=n).round(digits), (rng.normal(size=n) + shift).round(digits)
    try:
        expected = scipy_test(first, second)
    except RuntimeWarning:
        return
    found = forget_quality(torch.tensor(first), torch.tensor(second))
    assert found.d == pytest.approx(expected.statistic, rel=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.log10_p == pytest.approx(math.log10(expected.pvalue), abs=1e-9)
    assert found.n == n


@pytest.mark.parametrize("n", [1, 40, 200, 400, 540, 541, 1000, 4000])
def test_floor_is_the_closed_form_and_its_logarithm_never_underflows(n):
    found = forget_quality(torch.arange(n).double(), torch.arange(n).double() + n)
    assert found.d == 1
    by_gamma = (math.log(2) + 2 * math.lgamma(n + 1) - math.lgamma(2 * n + 1)) / math.log(10)
    assert found.log10_p == pytest.approx(by_gamma, rel=1e-11, abs=1e-12)
    assert found.p == pytest.approx(2 / math.comb(2 * n, n), rel=1e-12)
    assert (found.p == 0) == (n >= 541)


def test_published_floor():
    assert ks_log_probability(200, 200)[0] == pytest.approx(1.9e-119, rel=0.05)
    assert ks_log_probability(400, 400)[0] == pytest.approx(1.1e-239, rel=0.1)


def test_logarithm_where_only_part_of_the_range_underflows():
    # Halfway down, at n = 4000: the first term of the series, as scipy's survival function of large samples bounds it.
    p, log10_p = ks_log_probability(2400, 4000)
    assert p == 0
    first_term = math.log10(2) + math.log10(math.comb(8000, 1600)) - math.log10(math.comb(8000, 4000))
    assert log10_p == pytest.approx(first_term, abs=1e-9)


def test_same_sample_and_order_of_values_only():
    values = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = values.flip(0) * 1.3 + 0.2
    assert forget_quality(values, values.flip(0)) == (1.0, 0.0, 0.0, 50)
    assert forget_quality(values.exp(), other.exp()) == forget_quality(values, other)


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(ValueError, match="one size"):
        forget_quality(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="one size"):
        forget_quality(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="NaN"):
        forget_quality(torch.tensor([1.0, torch.nan]), torch.zeros(2))


def test_rows_without_a_number_in_either_model_are_left_out():
    mine = [{"index": i, "log_ratio": value} for i, value in enumerate([0.1, math.nan, 0.3, -0.2])]
    other = [{"index": i, "log_ratio": value} for i, value in enumerate([1.1, 0.2, None, 1.2])]
    metric = ForgetQuality("forget", other)
    metric.update({"forget": mine})
    expected = forget_quality(torch.tensor([0.1, -0.2]), torch.tensor([1.1, 1.2]))
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(expected._asdict())
    metric = ForgetQuality("forget", other[2:3])
    metric.update({"forget": mine[2:3]})
    assert metric.compute().isnan()
    assert metric.reason == "no forget row has a truth ratio under both models"
