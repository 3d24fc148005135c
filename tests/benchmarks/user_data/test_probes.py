"""Probes: rewordings, neighbours and the embedded general rows."""

import pytest

from dipo_lightning.benchmarks.user_data.probes import general_paragraphs, general_rows, neighbours, rewordings
from dipo_lightning.errors import InputError


def test_the_users_paraphrases_come_first():
    row = {"question": "Where is she?", "paraphrased_question": "What is her place?"}
    assert rewordings(row, ["Say: {question}"]) == ["What is her place?", "Say: Where is she?"]
    assert rewordings({"question": "A?", "paraphrased_question": ["B?", "C?"]}, []) == ["B?", "C?"]


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
