"""Scores of attacks against brute force and numbers made by hand."""

from __future__ import annotations

from itertools import combinations

import pytest

from dipo_lightning.errors import InputError
from dipo_lightning.metrics.functional.robustness import leak_at_k, quantization_score, relearning_score


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_leak_at_k_against_every_choice_of_answers(samples):
    for leaking in range(samples + 1):
        answers = [True] * leaking + [False] * (samples - leaking)
        for k in range(1, samples + 1):
            choices = [any(choice) for choice in combinations(answers, k)]
            assert leak_at_k(samples, leaking, k) == pytest.approx(sum(choices) / len(choices), abs=1e-15)


def test_leak_at_k_of_many_samples_is_exact():
    assert leak_at_k(200, 1, 100) == 0.5
    assert leak_at_k(200, 200, 1) == 1
    assert leak_at_k(200, 101, 100) == 1
    assert leak_at_k(200, 0, 200) == 0


@pytest.mark.parametrize("k", [0, 21])
def test_leak_at_k_of_more_answers_than_were_sampled_is_refused(k):
    with pytest.raises(InputError, match=f"k = {k} of 20"):
        leak_at_k(20, 3, k)


@pytest.mark.parametrize(
    ("retain", "unlearned", "score"),
    [(0.1, 0.4, 0.25), (0.4, 0.1, 1.0), (0.3, 0.3, 1.0), (0.0, 0.0, 1.0), (-0.1, 0.2, 0.0), (0.2, -0.1, 1.0)],
)
def test_relearning_score(retain, unlearned, score):
    assert relearning_score(retain, unlearned) == pytest.approx(score)


@pytest.mark.parametrize(
    ("before", "after", "score"), [(0.8, 0.6, 0.75), (0.8, 0.9, 1.0), (0.5, 0.0, 0.0), (0.0, 0.0, 1.0)]
)
def test_quantization_score(before, after, score):
    assert quantization_score(before, after) == pytest.approx(score)
