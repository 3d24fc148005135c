"""AUCs and PrivLeak against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dipo_lightning.errors import InputError
from dipo_lightning.metrics import MembershipAUC, PrivLeak
from dipo_lightning.metrics.functional import membership_auc, privleak, privleak_auc

SCORES = st.lists(st.integers(-4, 4).map(lambda i: -120 + i / 2), min_size=1, max_size=15)


def two_samples(forget, holdout):
    samples = {"forget": forget, "holdout": holdout}
    return {name: [{"index": i, "min_k": float(v)} for i, v in enumerate(values)] for name, values in samples.items()}


@settings(deadline=None)
@given(members=SCORES, others=SCORES)
def test_auc_equals_sklearn_with_ties(members, others):
    label = [0] * len(members) + [1] * len(others)
    expected = roc_auc_score(label, members + others)
    first, second = torch.tensor(members), torch.tensor(others)
    assert membership_auc(first, second).item() == pytest.approx(expected, abs=1e-12)
    assert privleak_auc(first, second).item() == pytest.approx(1 - expected, abs=1e-12)


def test_scores_around_minus_120_are_not_squashed():
    rng = np.random.default_rng(0)
    members, others = rng.normal(-120.5, 0.5, 200), rng.normal(-120, 0.5, 200)
    expected = roc_auc_score([0] * 200 + [1] * 200, np.concatenate([members, others]))
    assert 0.6 < expected < 0.9
    metric = MembershipAUC("forget", "holdout", attack="min_k")
    metric.update(two_samples(members, others))
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)


def test_directions():
    memorised, unseen = torch.tensor([0.1, 0.2]), torch.tensor([3.0, 4.0])
    assert membership_auc(memorised, unseen) == 1
    assert privleak_auc(memorised, unseen) == 0
    assert privleak(0.0, 0.5) == -100
    assert privleak(0.4772, 0.4772) == 0
    assert privleak(0.75, 0.5) == 50


@pytest.mark.parametrize("auc_retrain", [0.0, -0.1, 1.5, float("nan")])
def test_an_auc_that_cannot_be_divided_by_is_refused(auc_retrain):
    with pytest.raises(InputError, match="AUC of the retain model"):
        privleak(0.5, auc_retrain)
    with pytest.raises(InputError, match="AUC of the retain model"):
        PrivLeak("forget", "holdout", auc_retrain=auc_retrain)


def test_privleak_has_no_silent_reference():
    metric = PrivLeak("forget", "holdout")
    metric.update(two_samples([1.0, 2.0], [1.5]))
    assert torch.isnan(metric.compute()[""])
    assert "neither a retain model's log nor its AUC" in metric.reason


def test_privleak_metric_keeps_the_samples_apart():
    metric = PrivLeak("forget", "holdout", auc_retrain=0.5)
    metric.update(two_samples([1.0], []))
    assert torch.isnan(metric.compute())  # nothing is held out yet
    metric.reset()
    # The indices of both samples start at 0: rows of one must not replace rows of the other.
    metric.update(two_samples([1.0, 2.0, 3.0], [1.5, 2.0, 2.5]))
    expected = roc_auc_score([1] * 3 + [0] * 3, [1, 2, 3, 1.5, 2, 2.5])
    found = metric.compute()
    assert found[""].item() == pytest.approx(100 * (expected - 0.5) / 0.5)
    assert (found["auc"].item(), found["auc_retrain"].item()) == (pytest.approx(expected), 0.5)
