"""Invented newspaper in MUSE's schema, with invented people, towns and events.

MUSE's own corpora are copyrighted, so tests and the small run use this one. An article reports what was opened, where,
by whom and why. A quiz page asks about several articles and gives the answers: a small model cannot answer questions
about articles that it has merely read, and learns the answers there, so that KnowMem can be measured.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from dipo_lightning.data.files import json_lines, shipped_json
from dipo_lightning.errors import InputError
from dipo_lightning.quickstart.words import draw

Row = dict[str, str]

_LISTS = shipped_json(__package__, "newspaper")
"""Parts of names; values of each fact; the sentences of an article in order, each in three wordings; and the questions,
each with the fact that answers it."""

FOLDS = 4
FEWEST, MOST = 5, 200
"""Limits of the number of articles per edition, set by the ten in-context examples and by the distinct place names."""

EXAMPLES = 10
"""Number of questions used as in-context examples; the others are asked."""

QUIZ = 4
"""Number of questions on a quiz page."""

OPENING = 2
"""Number of sentences in VerbMem's prompt; the rest of the article is the continuation."""


@dataclass(frozen=True)
class Article:
    """Invented article.

    Attributes:
        facts: Facts by their name in the word lists.
        sentences: Sentences of the text.
    """

    facts: dict[str, str]
    sentences: tuple[str, ...]

    @property
    def questions(self) -> list[Row]:
        """Questions about it, with their answers; they fit no other article."""
        return [
            {"question": question.format(**self.facts), "answer": self.facts[fact]}
            for fact, question in _LISTS["questions"]
        ]

    @property
    def text(self) -> str:
        """The whole article."""
        return " ".join(self.sentences)


@dataclass(frozen=True)
class Edition:
    """Articles with the quiz pages about them, which are forgotten or kept together.

    Attributes:
        articles: The articles.
        questions: All questions about them, shuffled, so that a page asks about several articles.
    """

    articles: tuple[Article, ...]
    questions: tuple[Row, ...]

    @property
    def texts(self) -> list[Row]:
        """Its documents: the articles, then the quiz pages in the format of KnowMem's prompts."""
        asked = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in self.questions]
        pages = ["\n\n".join(asked[start : start + QUIZ]) for start in range(0, len(asked), QUIZ)]
        return [{"text": text} for text in [*(article.text for article in self.articles), *pages]]


def fictitious_articles(rng: random.Random, count: int) -> list[Article]:
    """Draw articles about distinct places and persons."""
    articles: list[Article] = []
    used: set[str] = set()
    while len(articles) < count:
        facts = {name: rng.choice(values) for name, values in _LISTS["facts"].items()}
        kinds = {"person": "person", "critic": "person", "town": "town"}
        facts |= {name: draw(_LISTS[kind], _LISTS["names"], rng) for name, kind in kinds.items()}
        facts |= {"day": str(rng.randint(1, 28)), "cost": str(rng.randint(11, 99)), "crowd": str(rng.randint(101, 999))}
        place, people = f"{facts['thing']} of {facts['town']}", {facts["person"], facts["critic"]}
        if place in used or len(people - used) < 2:
            continue
        used |= {place} | people
        chosen = (rng.choice(wordings) for wordings in _LISTS["sentences"])
        articles.append(Article(facts, tuple(wording.format(**facts) for wording in chosen)))
    return articles


def edition(rng: random.Random, articles: list[Article]) -> Edition:
    """Make an edition, with its questions in random order."""
    questions = [row for article in articles for row in article.questions]
    rng.shuffle(questions)
    return Edition(tuple(articles), tuple(questions))


def fictitious_news(seed: int = 0, articles: int = 12) -> dict[str, list[Row]]:
    """Make the whole corpus.

    Four editions are to be forgotten: the first is ``train/forget`` (and ``raw/forget``), ``scal/forget_k`` holds
    editions 1 to k, and each request of ``sust`` is one edition. retain1 and retain2 have two editions each, the
    holdout set has one. A target is trained on ``scal/forget_4``, retain1 and retain2; a retain model on the last two.

    Args:
        seed: Seed of all rows, which are the same on every machine.
        articles: Number of articles per edition, 5 to 200; it has as many quiz pages.

    Returns:
        Rows by ``configuration/split``, as in MUSE.

    Raises:
        InputError: ``articles`` is out of its range.
    """
    if not FEWEST <= articles <= MOST:
        raise InputError(f"articles is {articles}; give a number from {FEWEST} to {MOST}.")
    rng = random.Random(seed)
    everything = fictitious_articles(rng, 9 * articles)
    editions = [edition(rng, everything[start : start + articles]) for start in range(0, len(everything), articles)]
    texts = [one.texts for one in editions]
    forgotten, retain1, retain2, holdout = texts[:FOLDS], texts[4] + texts[5], texts[6] + texts[7], texts[8]
    made = {
        "raw": {"forget": forgotten[0], "retain1": retain1, "retain2": retain2, "holdout": holdout},
        "train": {"forget": forgotten[0], "retain1": retain1, "retain2": retain2},
        "scal": {f"forget_{fold + 1}": sum(forgotten[: fold + 1], []) for fold in range(FOLDS)},
        "sust": {f"forget_{fold + 1}": forgotten[fold] for fold in range(FOLDS)},
        "privleak": {"forget": forgotten[0], "retain": texts[6], "holdout": holdout},
        "verbmem": {"forget": _continuations(editions[0])},
        "knowmem": _knowledge(forget=editions[0], retain=editions[6]),
    }
    return {f"{name}/{split}": part for name, splits in made.items() for split, part in splits.items()}


def write_fictitious_news(folder: Path, seed: int = 0, articles: int = 12) -> Path:
    """Write `fictitious_news` as a folder of ``<configuration>/<split>.jsonl``, MUSE's layout."""
    for part, rows in fictitious_news(seed, articles).items():
        path = folder / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json_lines(rows).encode())
    return folder


def _continuations(one: Edition) -> list[Row]:
    return [
        {"prompt": " ".join(article.sentences[:OPENING]), "gt": " " + " ".join(article.sentences[OPENING:])}
        for article in one.articles
    ]


def _knowledge(**editions: Edition) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for name, one in editions.items():
        rows[f"{name}_qa"] = list(one.questions[EXAMPLES:])
        rows[f"{name}_qa_icl"] = list(one.questions[:EXAMPLES])
    return rows
