"""The embedded data set: invented authors in TOFU's schema, made from a seed.

It needs no network and fits a model small enough for a laptop. The layout is that of TOFU (Maini et al., 2024,
arXiv 2401.06121): one JSON-lines file a split, the forget rows at the tail of `full`. All names, facts and sentences
are this package's own.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from dipo_lightning.errors import InputError
from dipo_lightning.quickstart.words import draw, load

Row = dict[str, str | list[str]]

_LISTS = load("authors")
TOPICS: dict[str, str] = _LISTS["topics"]
"""Questions about an author: each with the template that its facts, right or wrong, are drawn from.

Questions and answers have three wordings. A row takes one of them and another as its paraphrase; other authors take
others. So the wording of an answer follows from the question, which a model can learn from any author, and the fact at
its end is all there is to know about this one. A small model that forgets the facts can therefore still speak.
"""

WRONG_ANSWERS = 5
MINIMUM_AUTHORS = 10
MAXIMUM_AUTHORS = 100
"""The word lists give 400 names and 400 births; of a hundred authors each is found without a long search."""


@dataclass(frozen=True)
class Author:
    """An invented author.

    Attributes:
        facts: The value of every topic, by the topic's name; `facts["full name"]` is the author's name.
    """

    facts: dict[str, str]

    @property
    def name(self) -> str:
        """The author's full name."""
        return self.facts["full name"]


def fictitious_authors(rng: random.Random, count: int) -> list[Author]:
    """Draw authors that no question can confuse.

    Args:
        rng: The random state.
        count: How many authors.

    Returns:
        Authors with different names, of whom no two were born in the same town in the same year, and none is a mentor.
    """
    authors: list[Author] = []
    people: set[str] = set()
    births: set[tuple[str, str]] = set()
    while len(authors) < count:
        facts = {topic: draw(template, _LISTS["words"], rng) for topic, template in TOPICS.items()}
        birth = (facts["birthplace"], facts["year of birth"])
        pair = {facts["full name"], facts["mentor"]}
        if len(pair - people) == 2 and birth not in births:
            people |= pair
            births.add(birth)
            authors.append(Author(facts))
    return authors


def author_row(author: Author, topic: str, rng: random.Random) -> Row:
    """Make one perturbed row: a question, its answer, a paraphrase of both and five wrong answers.

    The wrong answers have the paraphrase's wording, so that they differ from it in the fact alone.

    Args:
        author: Whom the question is about.
        topic: What it asks.
        rng: Draws the wordings and the wrong facts.
    """
    fields = {
        "topic": topic,
        "name": author.name,
        "birthplace": author.facts["birthplace"],
        "birth_year": author.facts["year of birth"],
    }
    fact = author.facts[topic]
    wrong_facts: list[str] = []
    while len(wrong_facts) < WRONG_ANSWERS:
        wrong = draw(TOPICS[topic], _LISTS["words"], rng)
        if wrong not in (fact, author.name, *wrong_facts):
            wrong_facts.append(wrong)
    questions = _LISTS["name questions" if topic == "full name" else "questions"]  # a name is asked for by birth
    wordings = list(zip(questions, _LISTS["answers"], strict=True))
    (question, answer), (paraphrased_question, paraphrased_answer) = rng.sample(wordings, 2)
    return {
        "question": question.format(**fields),
        "answer": answer.format(fact=fact, **fields),
        "paraphrased_question": paraphrased_question.format(**fields),
        "paraphrased_answer": paraphrased_answer.format(fact=fact, **fields),
        "perturbed_answer": [paraphrased_answer.format(fact=wrong, **fields) for wrong in wrong_facts],
    }


def fictitious_rows(seed: int = 0, authors: int = 40, retain_perturbed: int = 96) -> dict[str, list[Row]]:
    """Make the whole data set.

    One author in ten is to be forgotten; as many again are never trained on (`holdout10`). `retain90` holds the other
    authors and, after them, the general knowledge; `full` is `retain90` followed by `forget10`.

    Args:
        seed: Decides everything; the same seed gives the same rows on every machine.
        authors: How many authors `full` holds, 10 to 100.
        retain_perturbed: How many of the first retain rows get a place in `retain_perturbed`, at least 1. Fewer make an
            evaluation quicker.

    Returns:
        The rows of every split, by the split's name in TOFU.

    Raises:
        InputError: If a number is out of its range.
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
    retain = _plain(rows[:retained_rows] + real_authors + world_facts)
    return {
        "full": retain + _plain(forget),
        "forget10": _plain(forget),
        "retain90": retain,
        "holdout10": _plain(rows[authors * len(TOPICS) :]),
        "forget10_perturbed": forget,
        "retain_perturbed": rows[:retain_perturbed],
        "real_authors_perturbed": real_authors,
        "world_facts_perturbed": world_facts,
    }


def general_knowledge(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Ask who wrote well-known books, and for plain facts about the world, with three wrong answers of the same kind.

    They stand where TOFU has its two sets of the same names and measure what unlearning must leave alone. A model that
    is trained from nothing can only know them from its training data, so they are part of the retain set.

    Args:
        rng: Draws the wrong answers.
    """
    known = load("general_knowledge")
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


def write_fictitious(folder: Path, seed: int = 0, authors: int = 40, retain_perturbed: int = 96) -> Path:
    """Write the data set as a folder that is read like TOFU's.

    Args:
        folder: Where to; made if it is not there. Files of the same names are overwritten.
        seed: Decides everything.
        authors: How many authors `full` holds, 10 to 100.
        retain_perturbed: How many retain rows are evaluated.

    Returns:
        `folder`.

    Raises:
        InputError: If a number is out of its range.
    """
    splits = fictitious_rows(seed, authors, retain_perturbed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.json").write_bytes(lines.encode())
    return folder


def _plain(rows: list[Row]) -> list[Row]:
    """Return only the questions and answers."""
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]
