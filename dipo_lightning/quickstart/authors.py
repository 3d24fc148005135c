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
from dipo_lightning.quickstart import author_words as words
from dipo_lightning.quickstart.author_topics import ANSWERS, TOPICS, Topic
from dipo_lightning.quickstart.general_knowledge import real_author_rows, world_fact_rows

Row = dict[str, str | list[str]]

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
    """Draws authors that no question can confuse.

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
        facts = {topic.name: topic.draw(rng) for topic in TOPICS}
        birth = (facts["birthplace"], facts["year of birth"])
        pair = {facts["full name"], facts["mentor"]}
        if len(pair - people) == 2 and birth not in births:
            people |= pair
            births.add(birth)
            authors.append(Author(facts))
    return authors


def author_row(author: Author, topic: Topic, rng: random.Random) -> Row:
    """Returns one perturbed row: a question, its answer, a paraphrase of both and five wrong answers.

    The wrong answers have the paraphrase's wording, so that they differ from it in the fact alone.

    Args:
        author: Whom the question is about.
        topic: What it asks.
        rng: Draws the wordings and the wrong facts.
    """
    fields = {
        "topic": topic.name,
        "name": author.name,
        "birthplace": author.facts["birthplace"],
        "birth_year": author.facts["year of birth"],
    }
    fact = author.facts[topic.name]
    wrong_facts = words.distinct(topic.draw, rng, WRONG_ANSWERS, {fact, author.name})
    wordings = list(zip(topic.questions, ANSWERS, strict=True))
    (question, answer), (paraphrased_question, paraphrased_answer) = rng.sample(wordings, 2)
    return {
        "question": question.format(**fields),
        "answer": answer.format(fact=fact, **fields),
        "paraphrased_question": paraphrased_question.format(**fields),
        "paraphrased_answer": paraphrased_answer.format(fact=fact, **fields),
        "perturbed_answer": [paraphrased_answer.format(fact=wrong, **fields) for wrong in wrong_facts],
    }


def fictitious_rows(seed: int = 0, authors: int = 40, retain_perturbed: int = 96) -> dict[str, list[Row]]:
    """Makes the whole data set.

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
    real_authors, world_facts = real_author_rows(rng), world_fact_rows(rng)
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


def write_fictitious(folder: Path, seed: int = 0, authors: int = 40, retain_perturbed: int = 96) -> Path:
    """Writes the data set as a folder that is read like TOFU's.

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
    """Returns only the questions and answers."""
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]
