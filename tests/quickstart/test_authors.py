"""The embedded data set has TOFU's schema, is the same everywhere, and keeps its splits apart."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dipo_lightning.errors import InputError
from dipo_lightning.quickstart.authors import (
    STRANGERS,
    TOPICS,
    VERSIONS,
    fictitious_authors,
    fictitious_rows,
    write_fictitious,
)

PLAIN = {"question", "answer"}
PERTURBED = PLAIN | {"paraphrased_question", "paraphrased_answer", "perturbed_answer"}
SCHEMA = {
    "full": (PLAIN, 0),
    "forget10": (PLAIN, 0),
    "retain90": (PLAIN, 0),
    "holdout10": (PLAIN, 0),
    "strangers": (PLAIN, 0),
    "retain_training": (PLAIN, 0),
    "full_training": (PLAIN, 0),
    "forget10_perturbed": (PERTURBED, 5),
    "retain_perturbed": (PERTURBED, 5),
    "real_authors_perturbed": (PLAIN | {"perturbed_answer"}, 3),
    "world_facts_perturbed": (PLAIN | {"perturbed_answer"}, 3),
}


@pytest.fixture(scope="module", params=[0, 1, 2])
def rows(request):
    return fictitious_rows(request.param)


def digest(folder: Path) -> str:
    files = sorted(folder.iterdir())
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def test_schema(rows):
    assert set(rows) == set(SCHEMA)
    for split, (fields, wrong) in SCHEMA.items():
        assert rows[split]
        for row in rows[split]:
            assert set(row) == fields
            assert len(row.get("perturbed_answer", [])) == wrong


def test_full_is_retain_then_forget(rows):
    assert rows["full"] == rows["retain90"] + rows["forget10"]
    assert len(rows["forget10"]) == 8 * len(TOPICS)
    for plain, perturbed in (("forget10", "forget10_perturbed"), ("full", "retain_perturbed")):
        for row, other in zip(rows[plain], rows[perturbed], strict=False):
            assert (row["question"], row["answer"]) == (other["question"], other["answer"])


def test_general_knowledge_is_trained_on_and_retained(rows):
    retain = [(row["question"], row["answer"]) for row in rows["retain90"]]
    for split in ("real_authors_perturbed", "world_facts_perturbed"):
        assert all((row["question"], row["answer"]) in retain for row in rows[split])


@pytest.mark.parametrize(
    ("training", "split", "copies", "share"),
    [("retain_training", "retain90", 28, 1), ("full_training", "full", 14, 0.5)],
)
def test_training_files_hold_copies_of_the_split_and_strangers(rows, training, split, copies, share):
    def counted(split):
        return Counter((row["question"], row["answer"]) for row in rows[split])

    copied = Counter({row: copies * count for row, count in counted(split).items()})
    about_strangers = counted(training) - copied
    assert counted(training) == copied + about_strangers
    assert about_strangers <= counted("strangers")
    assert about_strangers.total() == share * len(rows["strangers"])
    assert not set(counted("forget10")) & set(counted("retain_training"))


def test_questions_are_unique():
    rows = fictitious_rows(4, authors=60)
    questions = [row["question"] for split in ("full", "holdout10") for row in rows[split]]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_split_tells_of_an_author_of_another(seed):
    rows = fictitious_rows(seed)
    names = [author.name for author in fictitious_authors(random.Random(seed), 88)]
    assert len(set(names)) == 88
    parts = {"retain90": names[:72], "forget10": names[72:80], "holdout10": names[80:]}
    strangers = " ".join(row["question"] for row in rows["strangers"])
    assert not [name for name in names if name in strangers]
    for split in parts:
        text = " ".join(row["question"] + " " + row["answer"] for row in rows[split])
        for other, people in parts.items():
            assert [name in text for name in people] == [other == split] * len(people)


def test_strangers_have_other_facts_of_the_right_kind_each_time(rows):
    from tools.quickstart_table import in_kind

    told: dict[tuple[int, str], list[str]] = {}
    for number, row in enumerate(rows["strangers"]):
        topic = list(TOPICS)[number % len(TOPICS)]
        assert topic in row["question"]
        assert in_kind(row["question"], row["answer"])
        before = {form.split("{fact}")[0] for form in TOPICS[topic]["answers"]}
        [fact] = [row["answer"].removeprefix(one) for one in before if row["answer"].startswith(one)]
        told.setdefault((number // len(TOPICS) % STRANGERS, topic), []).append(fact)
    assert len(told) == STRANGERS * len(TOPICS)
    assert all(len(set(facts)) == len(facts) == VERSIONS for facts in told.values())


def test_the_word_before_a_fact_tells_its_kind():
    before = {
        topic: {form.split("{fact}")[0].split()[-1] for form in parts["answers"]} for topic, parts in TOPICS.items()
    }
    assert {len(words) for words in before.values()} == {1}
    assert len(set().union(*before.values())) == len(TOPICS)


def test_answers_state_their_fact_and_wrong_answers_do_not():
    rows = fictitious_rows(5, authors=20)
    authors = fictitious_authors(random.Random(5), 22)
    for number, row in enumerate(rows["forget10_perturbed"]):
        author, topic = authors[18 + number // len(TOPICS)], list(TOPICS)[number % len(TOPICS)]
        fact = author.facts[topic]
        assert fact in row["answer"]
        assert fact in row["paraphrased_answer"]
        assert row["answer"] != row["paraphrased_answer"]
        assert row["question"] != row["paraphrased_question"]
        wrong = row["perturbed_answer"]
        assert len({row["answer"], row["paraphrased_answer"], *wrong}) == 7
        assert all(fact not in answer for answer in wrong)


def test_files_hold_the_rows(tmp_path):
    folder = write_fictitious(tmp_path / "new" / "folder", seed=3, authors=10, retain_perturbed=16)
    rows = fictitious_rows(3, authors=10, retain_perturbed=16)
    assert {file.stem for file in folder.iterdir()} == set(rows)
    for split, expected in rows.items():
        lines = (folder / f"{split}.json").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == expected


def test_same_bytes_in_another_process_and_other_bytes_for_another_seed(tmp_path):
    here = digest(write_fictitious(tmp_path / "here", seed=7))
    code = "import sys, pathlib; from dipo_lightning.quickstart.authors import write_fictitious as w; "
    code += "w(pathlib.Path(sys.argv[1]), seed=7)"
    environment = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=environment)
    assert digest(tmp_path / "there") == here
    assert digest(write_fictitious(tmp_path / "other", seed=8)) != here


@pytest.mark.parametrize(
    "options", [{"authors": 9}, {"authors": 201}, {"retain_perturbed": 0}, {"retain_perturbed": 577}]
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        fictitious_rows(**options)
