"""A corpus in MUSE's schema that cannot be right: a sentence and exit code 2, before a model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.helpers.refused import TRAINER, assert_a_sentence, fit, write_rows
from tests.helpers.toys import save_toy


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a toy model beside it."""
    root = tmp_path_factory.mktemp("good")
    save_toy(root / "model", max_position_embeddings=2048)
    write_fictitious_news(root / "news", articles=5)
    return root


def rows(folder: Path, part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]


def replaced(part: str, field: str, value: object):
    """The first row of a part has another value in a field."""

    def change(folder: Path) -> list[dict[str, object]]:
        return [{**rows(folder, part)[0], field: value}, *rows(folder, part)[1:]]

    return part, change


CASES = {
    "another column": (("train/forget", lambda f: [{"content": "x"}]), "line 1: there is no 'text'; it has content"),
    "a document that is a list": (replaced("train/retain1", "text", ["x"]), "(list), not a text"),
    "empty documents alone": (("train/forget", lambda f: [{"text": " \n"}]), "line 1: 'text' is empty"),
    "an empty document to be measured": (replaced("privleak/holdout", "text", ""), "holdout.jsonl, line 1"),
    "a continuation that is missing": (("verbmem/forget", lambda f: [{"prompt": "The mayor"}]), "no 'gt'"),
    "a question without an answer": (replaced("knowmem/retain_qa", "answer", ""), "'answer' is empty"),
    "nine in-context examples": (
        ("knowmem/forget_qa_icl", lambda f: rows(f, "knowmem/forget_qa_icl")[:9]),
        "forget_qa_icl has 9 in-context examples; MUSE's questions need at least 10",
    ),
    "a part without rows": (("privleak/forget", lambda f: []), "no rows"),
    "texts shorter than Min-K needs": (
        ("privleak/holdout", lambda f: [{"text": "a"}, {"text": "b"}]),
        "No text of privleak/holdout can be scored. Too short for Min-K",
    ),
    "retain2 that is trained on": (("train/retain2", lambda f: rows(f, "train/retain1")[:1]), "retain2 rows are"),
    "holdout that is forgotten": (("privleak/holdout", lambda f: rows(f, "train/forget")[:2]), "holdout rows are"),
    "a document to forget and to keep": (
        ("train/retain1", lambda f: rows(f, "train/retain1") + rows(f, "train/forget")[3:4]),
        "1 of 10 documents of train/forget are in train/retain1 too",
    ),
}


def config(root: Path, news: Path) -> dict:
    evaluation = {"baseline": 0.5, "max_rows": 2, "verbmem_tokens": 2, "knowmem_tokens": 2}
    return {
        "trainer": {**TRAINER, "callbacks": [{"class_path": "dipo_lightning.callbacks.MUSEEvaluation",
                                              "init_args": evaluation}]},
        "model": {"class_path": "dipo_lightning.GradDiffModule", "init_args": {"pretrained": str(root / "model")}},
        "data": {"class_path": "dipo_lightning.MUSEDataModule",
                 "init_args": {"data": str(news), "max_length": 64, "batch_size": 1}},
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_corpus_is_a_sentence_and_exit_code_2(
    good: Path, here: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **options: object) -> None:
        raise AssertionError("the model was loaded before the corpus was checked")

    monkeypatch.setattr("dipo_lightning.methods.language_model.load_policy", load)
    (part, change), said = CASES[case]
    news = here / "news"
    shutil.copytree(good / "news", news)
    write_rows(news / f"{part}.jsonl", change(news))
    code = fit(here, config(good, news))
    assert_a_sentence(code, capsys.readouterr().err, said)


def test_the_good_corpus_runs(good: Path, here: Path) -> None:
    assert fit(here, config(good, good / "news")) == 0
