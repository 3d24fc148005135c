"""The examination: what is cut, and what is left out."""

import pytest

from dipo_lightning.benchmarks.user_data import examination
from dipo_lightning.benchmarks.user_data.examination import (
    ExaminationOptions,
    _sampled,
    _value_scores,
    by_kind,
    examine,
    false_variants,
    values_by_row,
)
from dipo_lightning.benchmarks.user_data.probes import TEMPLATES
from dipo_lightning.data.prompts import prompt_style
from tests.helpers.toys import LENGTH, toy_model, toy_tokenizer


@pytest.mark.filterwarnings("ignore:.* longer than the model's:UserWarning")
def test_a_row_longer_than_the_positions_is_cut_and_its_first_values_are_scored():
    filler = "and so on " * LENGTH
    rows = [
        {"question": "Who?", "answer": "Zed.", "private": ["Zed"]},
        {"question": "Where?", "answer": f"Lima {filler}Oslo.", "private": ["Lima", "Oslo"]},
        {"question": filler, "answer": "Rome.", "private": ["Rome"]},
    ]
    model, style, values = toy_model("gpt2"), prompt_style("plain", toy_tokenizer()), values_by_row(rows, {})
    probability, rank = _value_scores(model, style, rows, values)
    assert probability[:1] == _value_scores(model, style, rows[:1], values[:1])[0]
    assert probability[1][0] > 0
    assert rank[1][0] > 0
    assert [probability[1][1], *probability[2]] == [0, 0], "behind the last position"


def test_without_samples_none_are_drawn():
    model, style = toy_model("llama"), prompt_style("plain", toy_tokenizer())
    assert _sampled(model, style, [["Who?", "Where?"], ["When?"]], ExaminationOptions(samples=0)) == [[], []]


def test_every_paraphrase_of_a_row_is_asked_and_as_many_rewordings_by_rule_as_wanted(monkeypatch):
    asked = []
    monkeypatch.setattr(examination, "_greedy", lambda *given: asked.append(given[2]) or given[2])
    rows = [
        {"question": "Who?", "answer": "Zed.", "paraphrased_question": ["A?", "B?", "C?"]},
        {"question": "Where?", "answer": "Lima."},
    ]
    style, options = prompt_style("plain", toy_tokenizer()), ExaminationOptions(samples=0, rewordings=1)
    found = examine(toy_model("llama"), style, rows, [], options=options)
    by_rule = [TEMPLATES[0].replace("{question}", row["question"]) for row in rows]
    assert asked == [["Who?", "A?", "B?", "C?", by_rule[0], "Where?", by_rule[1]]]
    assert found.reworded == [["A?", "B?", "C?", by_rule[0]], [by_rule[1]]]


def test_seeds_share_no_stream_and_those_of_seed_0_stay(monkeypatch):
    drawn = []
    monkeypatch.setattr(examination, "sample", lambda *args, seeds, **options: drawn.append(seeds) or [[]] * len(seeds))
    model, style = toy_model("llama"), prompt_style("plain", toy_tokenizer())
    for seed in (0, 1, 2, 2**32 - 1):
        options = ExaminationOptions(samples=1, seed=seed)
        _sampled(model, style, [["Who?", "Where?", "When?"], ["What?"]], options)
    assert drawn[0] == [1_000_003, 2_000_006, 3_000_009, 1_000_004]
    assert len({one for seeds in drawn for one in seeds}) == 4 * 4
    assert max(drawn[-1]) < 2**63, "what a generator takes"


def test_false_variants_are_of_the_values_kind_and_no_words_of_its_row():
    values = [f"{letter}word" for letter in "abcdefghij"] + ["Oslo", "Lima Alta", "42", "12 June 1971"]
    pool = by_kind(values)
    found = false_variants("glassblower", pool, "Who is the cword?")
    assert len(found) == 5
    assert "cword" not in found
    assert {one[1:] for one in found} == {"word"}
    assert found == false_variants("glassblower", by_kind([*values[::-1], *values]), "Who is the cword?")
    assert len({tuple(false_variants(value, pool)) for value in ("glassblower", "gout", "zither")}) == 3
    assert false_variants("Rome", pool) == ["Oslo"]
    assert false_variants("43", pool) == ["42"]
    assert false_variants("Oslo", by_kind(["Oslo Alta", "Oslo", "lima"])) == ["lima"], "not the value in company"
    assert false_variants("Lima", {}) == []
