"""Small sets of general knowledge: real authors, and facts about the world.

They stand where TOFU has its two sets of the same names and measure what unlearning must leave alone. A model that is
trained from nothing can only know them from its training data, so they are part of the retain set.
"""

from __future__ import annotations

import random

REAL_AUTHORS: tuple[tuple[str, str], ...] = (
    ("Moby-Dick", "Herman Melville"),
    ("Don Quixote", "Miguel de Cervantes"),
    ("Faust", "Johann Wolfgang von Goethe"),
    ("War and Peace", "Leo Tolstoy"),
    ("Crime and Punishment", "Fyodor Dostoevsky"),
    ("Madame Bovary", "Gustave Flaubert"),
    ("The Trial", "Franz Kafka"),
    ("Ulysses", "James Joyce"),
    ("Middlemarch", "George Eliot"),
    ("Jane Eyre", "Charlotte Brontë"),
    ("Dracula", "Bram Stoker"),
    ("Frankenstein", "Mary Shelley"),
    ("Treasure Island", "Robert Louis Stevenson"),
    ("The Time Machine", "H. G. Wells"),
    ("Germinal", "Émile Zola"),
    ("Candide", "Voltaire"),
    ("The Divine Comedy", "Dante Alighieri"),
    ("The Aeneid", "Virgil"),
    ("Oliver Twist", "Charles Dickens"),
    ("Walden", "Henry David Thoreau"),
    ("The Jungle Book", "Rudyard Kipling"),
    ("A Doll's House", "Henrik Ibsen"),
    ("The Cherry Orchard", "Anton Chekhov"),
    ("Heart of Darkness", "Joseph Conrad"),
)

WORLD_FACTS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Which city is the capital of {}?",
        (
            ("France", "Paris"),
            ("Italy", "Rome"),
            ("Spain", "Madrid"),
            ("Norway", "Oslo"),
            ("Japan", "Tokyo"),
            ("Egypt", "Cairo"),
            ("Peru", "Lima"),
            ("Kenya", "Nairobi"),
            ("Canada", "Ottawa"),
            ("Austria", "Vienna"),
            ("Greece", "Athens"),
            ("Cuba", "Havana"),
        ),
    ),
    (
        "What is the young of a {} called?",
        (
            ("cat", "A kitten"),
            ("dog", "A puppy"),
            ("sheep", "A lamb"),
            ("cow", "A calf"),
            ("horse", "A foal"),
            ("goose", "A gosling"),
            ("frog", "A tadpole"),
            ("goat", "A kid"),
        ),
    ),
    (
        "Which season comes after {}?",
        (("winter", "Spring"), ("spring", "Summer"), ("summer", "Autumn"), ("autumn", "Winter")),
    ),
    (
        "What is the colour of {}?",
        (
            ("snow", "White"),
            ("coal", "Black"),
            ("grass", "Green"),
            ("a ripe lemon", "Yellow"),
            ("a ripe tomato", "Red"),
            ("the clear sky at noon", "Blue"),
        ),
    ),
    (
        "How many {}?",
        (
            ("sides does a triangle have", "Three"),
            ("corners does a square have", "Four"),
            ("fingers are on one hand", "Five"),
            ("legs does an insect have", "Six"),
            ("days are in a week", "Seven"),
            ("legs does a spider have", "Eight"),
            ("months are in a year", "Twelve"),
        ),
    ),
    (
        "What do people get from a {}?",
        (
            ("bee", "Honey"),
            ("hen", "Eggs"),
            ("vineyard", "Grapes"),
            ("bakery", "Bread"),
            ("sawmill", "Timber"),
            ("quarry", "Stone"),
        ),
    ),
)


def _with_wrong_answers(pairs: list[tuple[str, str]], rng: random.Random) -> list[dict[str, str | list[str]]]:
    """Gives each question three wrong answers, taken from the other answers."""
    answers = [answer for _, answer in pairs]
    return [
        {
            "question": question,
            "answer": answer,
            "perturbed_answer": rng.sample([other for other in answers if other != answer], 3),
        }
        for question, answer in pairs
    ]


def real_author_rows(rng: random.Random) -> list[dict[str, str | list[str]]]:
    """Returns rows that ask who wrote a well-known book, with three wrong authors each.

    Args:
        rng: Draws the wrong answers.
    """
    return _with_wrong_answers([(f"Who is the author of {book}?", author) for book, author in REAL_AUTHORS], rng)


def world_fact_rows(rng: random.Random) -> list[dict[str, str | list[str]]]:
    """Returns rows that ask for plain facts, with three wrong answers of the same kind each.

    Args:
        rng: Draws the wrong answers.
    """
    rows: list[dict[str, str | list[str]]] = []
    for wording, pairs in WORLD_FACTS:
        rows += _with_wrong_answers([(wording.format(thing), answer) for thing, answer in pairs], rng)
    return rows
