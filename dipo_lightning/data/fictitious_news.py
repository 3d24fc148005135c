"""A made-up newspaper in MUSE's schema: invented people, towns and events, and no text of anybody's.

MUSE's own corpora are other people's copyright, so tests and the small run use this one. Each article tells what was
opened where, by whom, and why, and ends with its readers' questions. A model too small to answer about a text that it
has only read still learns the answers from there, so that KnowMem has something to measure.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from dipo_lightning.data import fictitious_words as words
from dipo_lightning.data.fictitious_news_words import LISTS, QUESTIONS, SENTENCES
from dipo_lightning.errors import InputError

Row = dict[str, str]

FOLDS = 4
FEWEST, MOST = 10, 250
"""Articles of a fold: ten for the ten in-context examples, and no more than there are names of places."""

OPENING = 2
"""Sentences of an article that VerbMem's prompt shows; the rest is to be continued."""


@dataclass(frozen=True)
class Article:
    """One invented article.

    Attributes:
        facts: What happened, by the names in `SENTENCES` and `QUESTIONS`.
        sentences: Its text, a sentence an item.
    """

    facts: dict[str, str]
    sentences: tuple[str, ...]

    @property
    def questions(self) -> list[Row]:
        """Questions about it, with their answers; no other article has the same."""
        return [{"question": question.format(**self.facts), "answer": self.facts[fact]} for fact, question in QUESTIONS]

    @property
    def text(self) -> str:
        """The whole article: its sentences, and its questions in the form that KnowMem asks them in."""
        asked = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in self.questions]
        return "\n\n".join([" ".join(self.sentences), *asked])


def fictitious_articles(rng: random.Random, count: int) -> list[Article]:
    """Draws articles of which no two tell of the same place or person.

    Args:
        rng: The random state.
        count: How many.
    """
    articles: list[Article] = []
    used: set[str] = set()
    while len(articles) < count:
        facts = {name: rng.choice(values) for name, values in LISTS.items()}
        facts |= {"person": words.person(rng), "critic": words.person(rng), "town": words.town(rng)}
        facts |= {"day": str(rng.randint(1, 28)), "cost": str(rng.randint(11, 99)), "crowd": str(rng.randint(101, 999))}
        place, people = f"{facts['thing']} of {facts['town']}", {facts["person"], facts["critic"]}
        if place in used or len(people - used) < 2:
            continue
        used |= {place} | people
        chosen = (rng.choice(wordings) for wordings in SENTENCES)
        articles.append(Article(facts, tuple(wording.format(**facts) for wording in chosen)))
    return articles


def fictitious_news(seed: int = 0, articles: int = 12) -> dict[str, list[Row]]:
    """Makes the whole corpus.

    What is forgotten comes in four folds: fold 1 is ``train/forget`` (and ``raw/forget``), the nested sets of ``scal``
    are folds 1 to k together, the requests of ``sust`` one fold each. There are twice as many articles in retain1 and
    in retain2 as in a fold, and as many in the holdout set. A target is to be trained on ``scal/forget_4``, retain1 and
    retain2; a retrained model on the last two alone.

    Args:
        seed: Decides everything; the same seed gives the same rows on every machine.
        articles: Articles of a fold, 10 to 250.

    Returns:
        Rows by ``configuration/split``, as MUSE has them.

    Raises:
        InputError: ``articles`` is out of its range.
    """
    if not FEWEST <= articles <= MOST:
        raise InputError(f"articles is {articles}; give a number from {FEWEST} to {MOST}.")
    everything = fictitious_articles(random.Random(seed), 9 * articles)
    forgotten = [everything[fold * articles : (fold + 1) * articles] for fold in range(FOLDS)]
    retain1, retain2 = everything[4 * articles : 6 * articles], everything[6 * articles : 8 * articles]
    holdout = everything[8 * articles :]
    rows = {
        "raw": {"forget": forgotten[0], "retain1": retain1, "retain2": retain2, "holdout": holdout},
        "train": {"forget": forgotten[0], "retain1": retain1, "retain2": retain2},
        "scal": {f"forget_{fold + 1}": sum(forgotten[: fold + 1], []) for fold in range(FOLDS)},
        "sust": {f"forget_{fold + 1}": forgotten[fold] for fold in range(FOLDS)},
        "privleak": {"forget": forgotten[0], "retain": retain2[:articles], "holdout": holdout},
    }
    made = {f"{name}/{split}": _texts(part) for name, splits in rows.items() for split, part in splits.items()}
    return made | {"verbmem/forget": _continuations(forgotten[0])} | _knowledge(forgotten[0], retain2)


def write_fictitious_news(folder: Path, seed: int = 0, articles: int = 12) -> Path:
    """Writes the corpus as a folder of ``<configuration>/<split>.jsonl``, which is read like MUSE.

    Args:
        folder: Where to; made if it is not there. Files of the same names are overwritten.
        seed: Decides everything.
        articles: Articles of a fold, 10 to 250.

    Returns:
        ``folder``.

    Raises:
        InputError: ``articles`` is out of its range.
    """
    for part, rows in fictitious_news(seed, articles).items():
        path = folder / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return folder


def _texts(articles: list[Article]) -> list[Row]:
    return [{"text": article.text} for article in articles]


def _continuations(articles: list[Article]) -> list[Row]:
    return [
        {"prompt": " ".join(article.sentences[:OPENING]), "gt": " " + " ".join(article.sentences[OPENING:])}
        for article in articles
    ]


def _knowledge(forget: list[Article], retain: list[Article]) -> dict[str, list[Row]]:
    """The last question of ten articles is shown as an example; all the others are asked."""
    rows: dict[str, list[Row]] = {}
    for name, articles in (("forget", forget), ("retain", retain[: len(forget)])):
        rows[f"knowmem/{name}_qa"] = [row for article in articles for row in article.questions[:-1]]
        rows[f"knowmem/{name}_qa_icl"] = [article.questions[-1] for article in articles[:10]]
    return rows
