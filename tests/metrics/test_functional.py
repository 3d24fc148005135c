"""Pure functions against independent computations."""

from __future__ import annotations

import math
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy.special import log_softmax
from scipy.stats import entropy as scipy_entropy
from scipy.stats import hmean

from dipo_lightning.errors import InputError
from dipo_lightning.metrics import functional
from dipo_lightning.metrics.functional import text as rouge
from dipo_lightning.metrics.functional.text import words as words_of

RNG = np.random.default_rng(7)


def double(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def each(function, *columns, **options):
    """The numbers of a function of one row, for every row."""
    return np.array([function(*row, **options) for row in zip(*columns, strict=True)])


def test_probability_and_normalised_probability():
    nll, wrong = RNG.uniform(0, 5, 20), RNG.uniform(0, 5, (20, 3))
    assert each(functional.answer_probability, nll) == pytest.approx(np.exp(-nll))
    share = np.exp(-nll) / (np.exp(-nll) + np.exp(-wrong).sum(1))
    assert each(functional.normalized_probability, nll, wrong) == pytest.approx(share)


def test_collapsed_model_gives_numbers_and_not_zero_by_zero():
    nll, wrong = 2000.0, [2001.0, 2002.0]
    assert functional.normalized_probability(nll, wrong) == pytest.approx(1 / (1 + math.exp(-1) + math.exp(-2)))
    for variant in functional.TRUTH_RATIO_VARIANTS:
        assert math.isfinite(functional.log_truth_ratio(nll, wrong, variant))
    arithmetic = functional.log_truth_ratio(nll, wrong, "arithmetic")
    assert arithmetic == pytest.approx(math.log((math.exp(-1) + math.exp(-2)) / 2))


def test_truth_ratio_variants_are_the_published_formulas():
    correct, wrong = RNG.uniform(0, 30, 50), RNG.uniform(0, 30, (50, 5))
    p = np.exp(-correct)
    published = {
        "geometric": np.exp(-wrong.mean(1)) / p,
        "arithmetic": np.exp(-wrong).mean(1) / p,
        "open_unlearning": np.exp(-wrong.mean(1)) / (p + 1e-10),
    }
    for variant, ratio in published.items():
        found = double(each(functional.log_truth_ratio, correct, wrong, variant=variant))
        assert found.exp().numpy() == pytest.approx(ratio, rel=1e-9)
        assert functional.forget_truth_ratio(found).item() == pytest.approx(np.minimum(ratio, 1 / ratio).mean())
        assert functional.utility_truth_ratio(found).item() == pytest.approx(np.maximum(0, 1 - ratio).mean())


def test_open_unlearnings_variant_has_its_epsilon_in_every_denominator():
    nll, wrong = RNG.uniform(15, 30, 9), RNG.uniform(15, 30, (9, 3))
    p, others = np.exp(-nll), np.exp(-wrong)
    found = each(functional.normalized_probability, nll, wrong, variant="open_unlearning")
    assert found == pytest.approx(p / (p + others.sum(1) + 1e-10), rel=1e-9)
    ratio = np.array([0.0, 1e-12, 0.5, 1.0, 3.0, 1e9])
    log_ratio = double(ratio).log()
    assert functional.forget_truth_ratio(log_ratio, "open_unlearning").item() == pytest.approx(
        np.minimum(ratio, 1 / (ratio + 1e-10)).mean(), rel=1e-12
    )


def test_truth_probability_is_open_unlearnings_prob_mean():
    correct, wrong = RNG.uniform(0, 25, 30), RNG.uniform(0, 25, (30, 5))
    c, w = np.exp(-correct), np.exp(-wrong)
    published = {
        "geometric": c / (c + np.exp(-wrong.mean(1))),
        "arithmetic": c / (c + w.mean(1)),
        "open_unlearning": c / (c + np.exp(-wrong.mean(1)) + 1e-10),
    }
    for variant, share in published.items():
        found = each(functional.truth_probability, correct, wrong, variant=variant)
        assert found == pytest.approx(share, rel=1e-9), variant
    assert functional.truth_probability(3000.0, [3000.0, 3000.0]) == 0.5
    assert math.isnan(functional.truth_probability(1.0, []))
    assert math.isnan(functional.truth_probability(1.0, [], "open_unlearning"))
    for variant in ("geometric", "open_unlearning"):
        assert functional.truth_probability(math.inf, [1.0, 2.0], variant) == 0


def test_truth_ratio_below_one_means_the_right_answer_is_likelier():
    assert functional.log_truth_ratio(0.1, [3.0, 4.0]) < 0


def test_unknown_truth_ratio_is_refused_with_the_choices():
    with pytest.raises(InputError, match="geometric, arithmetic, open_unlearning"):
        functional.log_truth_ratio(1.0, [1.0], "harmonic")


def test_the_harmonic_mean():
    parts = RNG.uniform(0.01, 1, 9)
    assert functional.harmonic_mean(double(parts)).item() == pytest.approx(hmean(parts))
    parts[4] = 0
    assert functional.harmonic_mean(double(parts)).item() == 0
    with pytest.raises(ValueError, match=">= 0"):
        functional.harmonic_mean(double([0.5, -0.1]))


WORDS = st.lists(st.sampled_from(["a", "b", "c", "it", "says"]), max_size=12)


@given(WORDS)
def test_fluency_against_scipy(words):
    bits = []
    for size in (2, 3):
        ngrams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        bits.append(scipy_entropy(list(Counter(ngrams).values()), base=2) if ngrams else 0.0)
    found = functional.ngram_entropy(" ".join(words))
    assert found == pytest.approx(np.average(bits, weights=[1, 2]), abs=1e-12)


def test_fluency_of_known_texts():
    distinct = " ".join(map(str, range(9)))  # eight bigrams and seven trigrams, each once
    found = [functional.ngram_entropy(text) for text in (distinct, "no no no no no", "", "one")]
    assert found == pytest.approx([(3 + 2 * math.log2(7)) / 3, 0, 0, 0])


def test_perplexity_is_that_of_all_tokens_together():
    tokens = [RNG.uniform(0, 3, n) for n in (1, 4, 7)]
    nll, lengths = double([values.mean() for values in tokens] + [math.nan]), torch.tensor([1, 4, 7, 0])
    expected = math.exp(np.concatenate(tokens).mean())
    assert functional.perplexity(nll, lengths).item() == pytest.approx(expected)
    assert functional.perplexity(nll[3:], lengths[3:]).isnan()


TEXTS = st.text(alphabet="abcdeingABCDEING ,.'-_1", max_size=40)


@settings(deadline=None, max_examples=60)
@given(prediction=TEXTS, target=TEXTS, stemmer=st.booleans())
def test_rouge_equals_google(prediction, target, stemmer):
    google = RougeScorer(["rougeL"], use_stemmer=stemmer).score(target, prediction)["rougeL"]
    ours = functional.rouge_l([prediction], [target], stemmer=stemmer)
    assert ours.recall.item() == pytest.approx(google.recall, abs=1e-6)
    assert ours.f1.item() == pytest.approx(google.fmeasure, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Мария родилась в Туле.", 4),
        ("吾輩は猫である。名前はまだ無い。", 14),
        ("ラーメン ｶﾞ", 5),
        ("王小明1987年生于上海", 9),
        ("เขาเกิดที่กรุงเทพ", 13),
        ("그는 1950년 서울에서 태어났다", 4),
        ("वह दिल्ली में रहता है", 5),
        ("عُمَر وُلِدَ سنة ١٩٥٠", 4),
        ("نمی\u200cدانم", 1),
        ("José García naïve", 3),
        ("Jose\u0301 Garci\u0301a nai\u0308ve", 3),
        ("don't stop_now", 4),
        ("…!?。", 0),
    ],
)
@pytest.mark.parametrize("stemmer", [True, False])
def test_words_of_any_script(text, count, stemmer):
    assert len(words_of(text, stemmer)) == count
    assert words_of(text, stemmer) == words_of(text.upper(), stemmer)
    assert functional.rouge_l([text], [text], stemmer).recall.item() == bool(count)


def test_rouge_of_other_scripts_counts_their_words():
    greek, english = "Η Ελένη γεννήθηκε στην Πάτρα 1950", "some unrelated words about 1950"
    assert functional.rouge_l([english], [greek]).recall.item() == pytest.approx(1 / 6)
    composed, decomposed = "José García", "Jose\u0301 Garci\u0301a"
    assert functional.rouge_l([decomposed], [composed]).f1.item() == 1
    assert functional.rouge_l(["Jose Garcia"], [composed]).f1.item() == 0  # an accent makes another letter
    assert functional.rouge_l(["王小红"], ["王小明"]).recall.item() == pytest.approx(2 / 3)
    assert functional.rouge_l(["ΟΔΟΣ STRASSE"], ["οδος Straße"], stemmer=False).f1.item() == 1


def test_fluency_of_unspaced_scripts_counts_characters():
    spaced = functional.ngram_entropy("一 二 三 四 五 六 七 八 九")
    assert functional.ngram_entropy("一二三四五六七八九") == pytest.approx(spaced)
    assert spaced == pytest.approx((3 + 2 * math.log2(7)) / 3)
    assert functional.ngram_entropy("กขฃคฅฆงจฉ") == pytest.approx(spaced)


SEQUENCES = st.lists(st.integers(0, 3), max_size=30)


@given(first=SEQUENCES, second=SEQUENCES, block=st.integers(1, 9))
def test_common_length_against_the_table(first, second, block):
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rouge, "_BLOCK", block)
        assert rouge.common_length(first, second) == table[-1, -1]


def test_rouge_of_long_texts_needs_linear_memory():
    text = [str(number) for number in range(20_000)]
    tracemalloc.start()
    assert rouge.common_length(text, text[::-1] + text) == len(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # a table of words against words would hold 800 million numbers


def test_rouge_stemmer_matters_and_lists_are_wanted():
    running = (["They are running"], ["He runs"])
    assert functional.rouge_l(*running, stemmer=True).recall.item() == pytest.approx(0.5)
    assert functional.rouge_l(*running, stemmer=False).recall.item() == 0
    with pytest.raises(ValueError, match="lists of texts"):
        functional.rouge_l("a text", ["a text"])
    with pytest.raises(ValueError, match="as many"):
        functional.rouge_l(["a", "b"], ["a"])


@given(st.lists(st.booleans(), max_size=8))
def test_memorisation_against_its_definition(values):
    correct = torch.tensor(values, dtype=torch.bool)
    exact, strength = functional.exact_memorization(correct), functional.extraction_strength(correct)
    if not values:
        assert math.isnan(exact)
        assert math.isnan(strength)
        return
    k = next(k for k in range(len(values) + 1) if all(values[k:]))
    assert exact == pytest.approx(sum(values) / len(values))
    assert strength == pytest.approx(1 - k / len(values), abs=1e-6)


@pytest.mark.parametrize(
    ("correct", "strength"), [([True, True, False], 0), ([True, True, True], 1), ([False, True, True], 2 / 3)]
)
def test_extraction_strength_reaches_both_ends(correct, strength):
    assert functional.extraction_strength(torch.tensor(correct)) == pytest.approx(strength)


@settings(deadline=None)
@given(st.lists(st.floats(-20, 0), max_size=12), st.sampled_from([0.2, 0.4, 0.29, 1.0]))
def test_min_k_against_its_definition(values, fraction):
    score = functional.min_k(double(values), fraction)
    if not values:
        assert math.isnan(score)
        return
    kept = max(1, int(fraction * len(values)))
    assert score == pytest.approx(-np.mean(sorted(values)[:kept]), abs=1e-9)


def test_min_k_default_is_muse_and_fraction_is_checked():
    logprobs = double([-5.0, -1.0, -4.0, -2.0, -3.0])
    assert functional.min_k(logprobs) == pytest.approx(4.5)
    assert functional.min_k(logprobs, fraction=0.2) == pytest.approx(5)
    with pytest.raises(ValueError, match="fraction"):
        functional.min_k(logprobs, fraction=40)


def test_min_k_plus_plus_against_numpy():
    logits, labels = RNG.normal(size=(6, 11)) * 3, RNG.integers(0, 10, 6)
    logits[:, 10] = -np.inf  # a token that the model cannot say must not turn the moments into NaN
    logprobs = log_softmax(logits[:, :10], axis=1)
    p = np.exp(logprobs)
    mean = (p * logprobs).sum(1)
    variance = (p * logprobs**2).sum(1) - mean**2
    z = (logprobs[np.arange(6), labels] - mean) / np.sqrt(variance)
    found = functional.standardized_logprobs(torch.tensor(logits), torch.tensor(labels))
    assert found.numpy() == pytest.approx(z, rel=1e-4)
    assert functional.min_k(found[:3], fraction=0.7) == pytest.approx(-np.sort(z[:3])[:2].mean(), rel=1e-4)


@pytest.mark.parametrize("text", ["a" * 100, "héllo"])
def test_zlib_score(text):
    assert functional.zlib_score(2.0, text) == pytest.approx(2 / len(zlib.compress(text.encode())))
