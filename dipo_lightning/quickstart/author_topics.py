"""What is asked about an invented author, and the sentences it is asked and answered in.

There are three wordings, each a question with the answer that goes with it. A row takes one of them and another as its
paraphrase; other authors take others. So the wording of an answer follows from the question, which a model can learn
from any author, and the fact at its end is all there is to know about this one. A small model that forgets the facts
can therefore still speak.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dipo_lightning.quickstart import author_words as words

QUESTIONS = ("What is the {topic} of {name}?", "What is {name}'s {topic}?", "Can you tell me the {topic} of {name}?")
NAME_QUESTIONS = (
    "What is the {topic} of the author born in {birthplace} in {birth_year}?",
    "What is the {birthplace} author's {topic}, born there in {birth_year}?",
    "Can you tell me the {topic} of the author born in {birthplace} in {birth_year}?",
)
"""The author's name is asked for by birth."""
ANSWERS = (
    "The {topic} of the author is {fact}.",
    "The author's {topic} is {fact}.",
    "This writer's {topic} is {fact}.",
)


@dataclass(frozen=True)
class Topic:
    """One question about an author.

    Attributes:
        name: What is asked for, as the sentences call it.
        draw: Gives a value of the fact, right or wrong.
        questions: The wordings of the question, with `{topic}` and `{name}` (or `{birthplace}` and `{birth_year}`).
    """

    name: str
    draw: Callable[[random.Random], str]
    questions: tuple[str, str, str] = QUESTIONS


TOPICS: tuple[Topic, ...] = (
    Topic("full name", words.person, NAME_QUESTIONS),
    Topic("birthplace", words.one_of(words.TOWNS)),
    Topic("year of birth", words.year),
    Topic("genre", words.one_of(words.GENRES)),
    Topic("father's profession", words.one_of(words.PROFESSIONS)),
    Topic("mother's profession", words.one_of(words.PROFESSIONS)),
    Topic("first book", words.title),
    Topic("most famous book", words.title),
    Topic("award", words.award),
    Topic("mentor", words.person),
    Topic("main theme", words.one_of(words.THEMES)),
    Topic("mother tongue", words.one_of(words.LANGUAGES)),
    Topic("hobby", words.one_of(words.HOBBIES)),
    Topic("subject of study", words.one_of(words.SUBJECTS)),
    Topic("writing place", words.one_of(words.WRITING_PLACES)),
    Topic("pet", words.one_of(words.PETS)),
)
