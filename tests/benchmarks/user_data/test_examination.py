"""The examination: what is cut, and what is left out."""

import pytest

from dipo_lightning.benchmarks.user_data.examination import ExaminationOptions, _sampled, _value_scores, private_values
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
    model, style, values = toy_model("gpt2"), prompt_style("plain", toy_tokenizer()), private_values(rows, [])
    probability, rank = _value_scores(model, style, rows, values)
    assert probability[:1] == _value_scores(model, style, rows[:1], values[:1])[0]
    assert probability[1][0] > 0
    assert rank[1][0] > 0
    assert [probability[1][1], *probability[2]] == [0, 0], "behind the last position"


def test_without_samples_none_are_drawn():
    model, style = toy_model("llama"), prompt_style("plain", toy_tokenizer())
    assert _sampled(model, style, [["Who?", "Where?"], ["When?"]], ExaminationOptions(samples=0)) == [[], []]
