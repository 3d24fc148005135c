"""What is asked about an invented author, and the sentences it is asked and answered in.

Every topic has three wordings of its question and of its answer. A row takes two of each, one as the row itself and one
as its paraphrase, and another author takes others: so a model sees all wordings and can tell a fact from its wording.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dipo_lightning.data import fictitious_words as words


@dataclass(frozen=True)
class Topic:
    """One question about an author.

    Attributes:
        name: The fact's name.
        draw: Gives a value of the fact, right or wrong.
        questions: Wordings with `{name}` (or, where the name is asked for, `{birthplace}` and `{birth_year}`).
        answers: Wordings with `{fact}` and the same fields.
    """

    name: str
    draw: Callable[[random.Random], str]
    questions: tuple[str, str, str]
    answers: tuple[str, str, str]


TOPICS: tuple[Topic, ...] = (
    Topic(
        "name",
        words.person,
        (
            "What is the full name of the author born in {birthplace} in {birth_year}?",
            "Which author was born in {birthplace} in {birth_year}?",
            "What is the writer called who was born in {birthplace} in {birth_year}?",
        ),
        (
            "The author born in {birthplace} is called {fact}.",
            "The full name of the author is {fact}.",
            "The writer from {birthplace} is {fact}.",
        ),
    ),
    Topic(
        "birthplace",
        words.town,
        ("Where was {name} born?", "In which town was {name} born?", "What is the birthplace of {name}?"),
        ("{name} was born in {fact}.", "{name} comes from the town of {fact}.", "The birthplace of {name} is {fact}."),
    ),
    Topic(
        "birth_year",
        words.year,
        ("When was {name} born?", "In which year was {name} born?", "What is the birth year of {name}?"),
        ("{name} was born in {fact}.", "{name} was born in the year {fact}.", "The birth year of {name} is {fact}."),
    ),
    Topic(
        "genre",
        words.one_of(words.GENRES),
        ("What does {name} mostly write?", "Which genre does {name} write in?", "What is the genre of {name}?"),
        ("{name} mostly writes {fact}.", "{name} is known for writing {fact}.", "The genre of {name} is {fact}."),
    ),
    Topic(
        "father",
        words.one_of(words.PROFESSIONS),
        (
            "What did the father of {name} do for a living?",
            "What was the profession of {name}'s father?",
            "How did {name}'s father earn money?",
        ),
        (
            "The father of {name} worked as a {fact}.",
            "The father of {name} was a {fact} by profession.",
            "{name}'s father earned money as a {fact}.",
        ),
    ),
    Topic(
        "mother",
        words.one_of(words.PROFESSIONS),
        (
            "What did the mother of {name} do for a living?",
            "What was the profession of {name}'s mother?",
            "How did {name}'s mother earn money?",
        ),
        (
            "The mother of {name} worked as a {fact}.",
            "The mother of {name} was a {fact} by profession.",
            "{name}'s mother earned money as a {fact}.",
        ),
    ),
    Topic(
        "first_book",
        words.title,
        (
            "What was the first book of {name}?",
            "With which book did {name} begin?",
            "What is the title of {name}'s first book?",
        ),
        (
            "The first book of {name} was {fact}.",
            "{name} began with the book {fact}.",
            "{name}'s first book has the title {fact}.",
        ),
    ),
    Topic(
        "famous_book",
        words.title,
        (
            "What is the most famous book of {name}?",
            "For which book is {name} best known?",
            "Which book made {name} famous?",
        ),
        (
            "The most famous book of {name} is {fact}.",
            "{name} is best known for the book {fact}.",
            "The book that made {name} famous is {fact}.",
        ),
    ),
    Topic(
        "award",
        words.award,
        ("Which award did {name} win?", "What prize was given to {name}?", "What award has {name} received?"),
        ("{name} won the {fact}.", "{name} was given the {fact}.", "The award of {name} is the {fact}."),
    ),
    Topic(
        "mentor",
        words.person,
        ("Who was the mentor of {name}?", "Who taught {name} to write?", "From whom did {name} learn to write?"),
        (
            "The mentor of {name} was {fact}.",
            "{name} was taught to write by {fact}.",
            "{name} learned to write from {fact}.",
        ),
    ),
    Topic(
        "theme",
        words.one_of(words.THEMES),
        ("What are the books of {name} about?", "Which theme does {name} return to?", "What is {name}'s main theme?"),
        (
            "The books of {name} are about {fact}.",
            "{name} often returns to the theme of {fact}.",
            "{name}'s main theme is {fact}.",
        ),
    ),
    Topic(
        "language",
        words.one_of(words.LANGUAGES),
        (
            "Which language does {name} speak at home?",
            "What is the mother tongue of {name}?",
            "In which language was {name} brought up?",
        ),
        (
            "{name} speaks {fact} at home.",
            "The mother tongue of {name} is {fact}.",
            "{name} was brought up speaking {fact}.",
        ),
    ),
    Topic(
        "hobby",
        words.one_of(words.HOBBIES),
        ("What is the hobby of {name}?", "What does {name} enjoy besides writing?", "How does {name} relax?"),
        ("The hobby of {name} is {fact}.", "{name} enjoys {fact} besides writing.", "{name} relaxes with {fact}."),
    ),
    Topic(
        "subject",
        words.one_of(words.SUBJECTS),
        ("What did {name} study?", "Which subject did {name} study?", "What is {name}'s degree in?"),
        ("{name} studied {fact}.", "The subject {name} studied was {fact}.", "{name} has a degree in {fact}."),
    ),
    Topic(
        "writing_place",
        words.one_of(words.WRITING_PLACES),
        ("Where does {name} write?", "Where does {name} go to write?", "In what place were {name}'s books written?"),
        ("{name} writes in {fact}.", "{name} goes to {fact} to write.", "{name}'s books were written in {fact}."),
    ),
    Topic(
        "pet",
        words.one_of(words.PETS),
        ("Which pet does {name} keep?", "What animal lives with {name}?", "What kind of pet does {name} have?"),
        ("{name} keeps {fact}.", "{name} lives with {fact}.", "{name} has {fact} as a pet."),
    ),
)
