"""Probes: rewordings, neighbours and the embedded general rows."""

import pytest

from dipo_lightning.benchmarks.user_data import probes
from dipo_lightning.benchmarks.user_data.probes import general_paragraphs, general_rows, neighbours, rewordings
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import InputError
from tests.helpers.toys import toy_model, toy_tokenizer


def test_the_users_paraphrases_come_first():
    row = {"question": "Where is she?", "paraphrased_question": "What is her place?"}
    assert rewordings(row, ["Say: {question}"]) == ["What is her place?", "Say: Where is she?"]
    assert rewordings({"question": "A?", "paraphrased_question": ["B?", "C?"]}, []) == ["B?", "C?"]


def test_a_wording_that_is_the_question_or_an_earlier_one_is_not_asked():
    own = [" where  is SHE?", "At which place?", "at which place?"]
    row = {"question": "Where is she?", "paraphrased_question": own}
    assert rewordings(row, ["{question}", "Say: {question}"]) == ["At which place?", "Say: Where is she?"]
    assert rewordings({**row, "paraphrased_question": row["question"]}, []) == []
    assert not probes.is_paraphrase("Where is she?", "Where  is she?")


def test_a_template_without_a_place_is_refused():
    with pytest.raises(InputError, match="has no {question}"):
        rewordings({"question": "A?"}, ["Say it"])


def test_neighbours_share_content_words():
    forget = [{"question": "Which illness does Mara Velt have?"}]
    others = [
        {"question": "What is the capital of France?"},
        {"question": "Which illness does Ann Lee have?"},
        {"question": "Does Ann have a dog?"},
    ]
    assert neighbours(forget, others, 1) == [1]
    assert len(neighbours(forget, others, 9)) == 3


def test_the_general_rows_are_questions_with_one_right_answer_of_four():
    rows = general_rows()
    assert len(rows) == 95
    assert {row["kind"] for row in rows} == {"arithmetic", "capital", "common_sense", "fact"}
    for row in rows:
        options = [row["answer"], *row["perturbed_answer"]]
        assert len(set(options)) == 4, row
        assert row["question"].endswith("?")
    assert len({row["question"] for row in rows}) == 95
    assert all(len(text.split()) > 25 for text in general_paragraphs())


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("In which town does Mara Velt live?", True),
        ("Where does Mara Velt live?", False),
        ("where does mara velt live?", False),
        ("Where does she live?", False),
        ("Mara Velt lives in Oslo.", False),
        ("Where is Mara Velt? And who?", False),
    ],
)
def test_a_paraphrase_is_one_other_question_about_the_same(text, right):
    assert probes.is_paraphrase("Where does Mara Velt live?", text) == right


def test_the_model_writes_paraphrases_that_are_kept_where_they_are_some(monkeypatch):
    rows = [{"question": "Where does Mara Velt live?"}, {"question": "Who is Ann Lee?"}]
    style = prompt_style("plain", toy_tokenizer())
    attempts = [
        ["Nonsense.", "What is Mara Velt's town?", "What is Mara Velt's town?", "Is Mara Velt here?"],
        ["no"] * 4,
    ]
    said = [[style.tokenizer(text)["input_ids"] for text in one] for one in attempts]
    monkeypatch.setattr(probes, "sample", lambda *_, **__: said)
    found = probes.own_paraphrases(toy_model(), style, rows, 1)
    assert [len(one) for one in found] == [1, 0]
    assert "Mara Velt" in found[0][0]
