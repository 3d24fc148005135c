"""The made-up newspaper is MUSE's schema, repeats for a seed, and shares nothing between what must not meet."""

from __future__ import annotations

import pytest

from dipo_lightning.benchmarks.muse.data import forget_texts, load_muse
from dipo_lightning.errors import InputError
from dipo_lightning.quickstart.newspaper import fictitious_news, write_fictitious_news


def test_it_is_read_like_muse(tmp_path):
    data = load_muse(write_fictitious_news(tmp_path / "news", articles=5))
    assert [len(data.train_forget), len(data.train_retain), len(data.retain2)] == [10, 20, 20]
    assert {name: len(rows) for name, rows in data.privleak.items()} == {"forget": 10, "retain": 10, "holdout": 10}
    assert {name: len(rows) for name, rows in data.knowmem.items()} == {"forget": 10, "retain": 10}
    assert {name: len(rows) for name, rows in data.in_context.items()} == {"forget": 10, "retain": 10}
    assert data.train_forget[0]["text"] == data.verbmem[0]["prompt"] + data.verbmem[0]["gt"]
    asked = f"Question: {data.knowmem['forget'][0]['question']}\nAnswer: {data.knowmem['forget'][0]['answer']}"
    assert any(asked in row["text"] for row in data.train_forget)
    assert any(data.knowmem["retain"][0]["question"] in row["text"] for row in data.retain2)


def test_folds_are_nested_and_requests_are_apart(tmp_path):
    write_fictitious_news(tmp_path, articles=5)
    scal = [[row["text"] for row in forget_texts(tmp_path, f"scal/forget_{k}")] for k in (1, 2, 3, 4)]
    sust = [[row["text"] for row in forget_texts(tmp_path, f"sust/forget_{k}")] for k in (1, 2, 3, 4)]
    assert [len(part) for part in scal] == [10, 20, 30, 40]
    assert all(small == large[: len(small)] for small, large in zip(scal, scal[1:], strict=False))
    assert sum(sust, []) == scal[3]
    assert len(set(scal[3])) == 40


def test_no_question_has_two_answers():
    rows = fictitious_news(seed=3, articles=20)
    questions = [row["question"] for side in ("forget", "retain") for row in rows[f"knowmem/{side}_qa"]]
    examples = [row["question"] for side in ("forget", "retain") for row in rows[f"knowmem/{side}_qa_icl"]]
    assert len(set(questions + examples)) == len(questions) + len(examples)


def test_the_seed_decides():
    assert fictitious_news(seed=1) == fictitious_news(seed=1)
    assert fictitious_news(seed=1) != fictitious_news(seed=2)


@pytest.mark.parametrize("articles", [4, 201])
def test_a_size_that_cannot_be(articles):
    with pytest.raises(InputError, match="from 5 to 200"):
        fictitious_news(articles=articles)
