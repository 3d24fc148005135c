"""Embedded data set: invented authors in TOFU's schema, generated from a seed.

It needs no network and suits a model small enough for a laptop. The layout is that of TOFU (Maini et al., 2024,
arXiv 2401.06121): one JSON-lines file per split, with the forget rows at the end of `full`. All names, facts and
sentences are this package's own.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_lightning.data.files import json_lines, shipped_json
from dipo_lightning.errors import InputError
from dipo_lightning.quickstart.words import draw

Row = dict[str, str | list[str]]

_LISTS = shipped_json(__package__, "authors")
TOPICS: dict[str, dict[str, Any]] = _LISTS["topics"]
"""Topics of the questions about an author, with the template of their facts, right or wrong, and wordings of answers.

There are many authors with few questions each, so that a small model sees enough answers of each kind to keep giving
answers of that kind once it has forgotten an author. For the same reason questions and answers have three wordings; a
row uses one of them, and another for its paraphrase. The wording of an answer follows from the question and can be
learnt from any author; only the fact at its end is specific to one author, and the word before it tells its kind.
"""
NAME = "{first name} {last name}"

WRONG_ANSWERS = 5
MINIMUM_AUTHORS = 10
MAXIMUM_AUTHORS = 200
STRANGERS, VERSIONS = 240, 4
"""Number of strangers, and number of different facts about each of them per question."""
COPIES = 28
"""Copies of the retain rows in `retain_training`, beside the rows about strangers.

A model sees the copied rows often and learns them by heart. There are many strangers, each seldom seen: from them it
learns the kinds of facts.
"""


@dataclass(frozen=True)
class Author:
    """An invented author.

    Attributes:
        name: The full name.
        facts: Facts by topic.
    """

    name: str
    facts: dict[str, str]


def fictitious_authors(rng: random.Random, count: int, known: Collection[str] = ()) -> list[Author]:
    """Draw authors with distinct names that are not among the known ones."""
    authors: dict[str, Author] = {}
    while len(authors) < count:
        name = draw(NAME, _LISTS["words"], rng)
        facts = {topic: draw_fact(topic, rng) for topic in TOPICS}
        if name not in known:
            authors.setdefault(name, Author(name, facts))
    return list(authors.values())


def draw_fact(topic: str, rng: random.Random, known: Collection[str] = ()) -> str:
    """Draw a fact of a topic that is not among the known ones."""
    while (fact := draw(TOPICS[topic]["fact"], _LISTS["words"], rng)) in known:
        pass
    return fact


def strangers(rng: random.Random, names: Sequence[str]) -> list[Author]:
    """Invent `VERSIONS` sets of different facts for every name."""
    told: list[Author] = []
    for _ in range(VERSIONS):
        for number, name in enumerate(names):
            earlier = told[number :: len(names)]
            facts = {topic: draw_fact(topic, rng, [one.facts[topic] for one in earlier]) for topic in TOPICS}
            told.append(Author(name, facts))
    return told


def plain_row(author: Author, topic: str, rng: random.Random) -> Row:
    """Make one row about an author with only question and answer, in one of the wordings."""
    question, answer = rng.choice(_wordings(topic))
    about = {"topic": topic, "name": author.name}
    return {"question": question.format(**about), "answer": answer.format(fact=author.facts[topic], **about)}


def author_row(author: Author, topic: str, rng: random.Random) -> Row:
    """Make one perturbed row about an author: question, answer, a paraphrase of both, and five wrong answers.

    The wrong answers use the wording of the paraphrase and differ from it only in the fact.
    """
    fact = author.facts[topic]
    wrong_facts: list[str] = []
    for _ in range(WRONG_ANSWERS):
        wrong_facts.append(draw_fact(topic, rng, (fact, *wrong_facts)))
    (question, answer), (paraphrased_question, paraphrased_answer) = rng.sample(_wordings(topic), 2)
    about = {"topic": topic, "name": author.name}
    return {
        "question": question.format(**about),
        "answer": answer.format(fact=fact, **about),
        "paraphrased_question": paraphrased_question.format(**about),
        "paraphrased_answer": paraphrased_answer.format(fact=fact, **about),
        "perturbed_answer": [paraphrased_answer.format(fact=wrong, **about) for wrong in wrong_facts],
    }


def fictitious_rows(seed: int = 0, authors: int = 80, retain_perturbed: int = 96) -> dict[str, list[Row]]:
    """Make the whole data set.

    One author in ten is to be forgotten; the same number of further authors is never trained on (`holdout10`).
    `retain90` holds the other authors, followed by general knowledge; `full` is `retain90` followed by `forget10`.
    `strangers` is about other people: `VERSIONS` sets of rows about each, with different facts. The training file of
    the retain model, `retain_training`, holds `COPIES` copies of `retain90`, followed by `strangers`; `full_training`,
    on which the target is then trained from the retain model, holds half as many copies of `full`, followed by the
    first half of `strangers`. Both models learn to answer about somebody unknown with a fact of the right kind.

    Args:
        seed: Seed of all rows, which are the same on every machine.
        authors: Number of authors in `full`, 10 to 200.
        retain_perturbed: Number of rows in `retain_perturbed`, at least 1; with fewer, an evaluation is faster.

    Returns:
        Rows of every split, by its name in TOFU where it has one.

    Raises:
        InputError: A number is out of range.
    """
    if not MINIMUM_AUTHORS <= authors <= MAXIMUM_AUTHORS:
        raise InputError(f"authors is {authors}; give a number from {MINIMUM_AUTHORS} to {MAXIMUM_AUTHORS}")
    forgotten = authors // 10
    retained_rows = (authors - forgotten) * len(TOPICS)
    if not 1 <= retain_perturbed <= retained_rows:
        raise InputError(f"retain_perturbed is {retain_perturbed}; with {authors} authors give 1 to {retained_rows}")
    rng = random.Random(seed)
    everyone = fictitious_authors(rng, authors + forgotten)
    rows = [author_row(author, topic, rng) for author in everyone for topic in TOPICS]
    forget = rows[retained_rows : authors * len(TOPICS)]
    real_authors, world_facts = general_knowledge(rng)
    names = [one.name for one in fictitious_authors(rng, STRANGERS, {author.name for author in everyone})]
    retain = _plain(rows[:retained_rows] + real_authors + world_facts)
    full = retain + _plain(forget)
    about_strangers = [plain_row(one, topic, rng) for one in strangers(rng, names) for topic in TOPICS]
    return {
        "full": full,
        "forget10": _plain(forget),
        "retain90": retain,
        "holdout10": _plain(rows[authors * len(TOPICS) :]),
        "strangers": about_strangers,
        "retain_training": retain * COPIES + about_strangers,
        "full_training": full * (COPIES // 2) + about_strangers[: len(about_strangers) // 2],
        "forget10_perturbed": forget,
        "retain_perturbed": rows[:retain_perturbed],
        "real_authors_perturbed": real_authors,
        "world_facts_perturbed": world_facts,
    }


def general_knowledge(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Make questions about well-known books and world facts, with three wrong answers of the same kind each.

    They correspond to TOFU's sets of the same names and measure knowledge that unlearning must preserve. A model
    trained from scratch knows it from its training data alone, so it is part of the retain set.
    """
    known = shipped_json(__package__, "general_knowledge")
    authors = _with_wrong_answers("Who is the author of {}?", known["real authors"], rng)
    facts = [_with_wrong_answers(wording, pairs, rng) for wording, pairs in known["world facts"].items()]
    return authors, [row for rows in facts for row in rows]


def _with_wrong_answers(wording: str, pairs: dict[str, str], rng: random.Random) -> list[Row]:
    return [
        {
            "question": wording.format(thing),
            "answer": answer,
            "perturbed_answer": rng.sample([other for other in pairs.values() if other != answer], 3),
        }
        for thing, answer in pairs.items()
    ]


def write_fictitious(folder: Path, seed: int = 0, authors: int = 80, retain_perturbed: int = 96) -> Path:
    """Write `fictitious_rows` as a folder in TOFU's layout, overwriting files of the same names."""
    splits = fictitious_rows(seed, authors, retain_perturbed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.json").write_bytes(json_lines(rows).encode())
    return folder


def _wordings(topic: str) -> list[tuple[str, str]]:
    """Return the templates of question and answer of a topic, one pair per wording."""
    return list(zip(_LISTS["questions"], TOPICS[topic]["answers"], strict=True))


def _plain(rows: list[Row]) -> list[Row]:
    """Return the rows with only question and answer."""
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]
