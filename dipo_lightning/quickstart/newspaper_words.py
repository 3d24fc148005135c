"""The words and wordings that the made-up newspaper is written from.

People and towns are put together from parts, so that no model knows them from its pre-training.
"""

from __future__ import annotations

import random

FIRST = (
    ("Ad", "Bel", "Cor", "Der", "El", "Fin", "Gor", "Hes", "Im", "Jar", "Kel", "Lin", "Mar", "Nor", "Ost", "Per"),
    ("ana", "bert", "ella", "ian", "ika", "mund", "ola", "rin", "son", "tane", "ula", "vira"),
)
LAST = (
    ("Ash", "Birk", "Crane", "Dorn", "Elm", "Fern", "Gold", "Hawk", "Kest", "Lark", "Moss", "Neth", "Rook", "Stern"),
    ("brook", "dale", "eda", "feld", "gard", "holm", "lund", "more", "ridge", "son", "ton", "wick"),
)
TOWN = (
    ("Ab", "Bran", "Cald", "Drom", "Ever", "Fal", "Grun", "Hol", "Ister", "Kar", "Lor", "Mel", "Nar", "Orv", "Pel"),
    ("bach", "burgh", "cester", "dorf", "fjord", "hampton", "lin", "mouth", "polis", "stad", "vale", "worth"),
)

LISTS: dict[str, tuple[str, ...]] = {
    "thing": (
        "footbridge", "library", "water mill", "market hall", "ice rink", "bell tower", "tram depot", "lighthouse",
        "orchard school", "fire station", "town theatre", "fish ladder", "planetarium", "bakery", "boat lift",
    ),
    "office": ("mayor", "harbour master", "chief librarian", "head teacher", "treasurer", "postmaster", "bishop"),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ),
    "firm": (
        "Dellwyn Brothers", "the Orrin Guild", "Tamsk and Daughter", "the Pellow Works", "Norring Timber",
        "the Vasta Foundry", "Quarrel and Reed", "the Lumen Cooperative", "Haskett Masonry", "the Brisk Company",
        "Ondra Glass", "the Six Oaks Yard",
    ),
    "cause": (
        "a flood", "a lightning strike", "a runaway cart", "an earthquake", "termites", "a landslide", "heavy snow",
        "a kitchen fire", "a spring tide", "dry rot", "a fallen elm", "a storm of hail",
    ),
    "leader": (
        "a brass band", "two white oxen", "a choir of children", "a man on stilts", "seven drummers", "an old donkey",
        "a troupe of acrobats", "the oldest fisherman", "a flock of geese", "a dancing bear puppet", "three bakers",
    ),
    "profession": (
        "dentist", "clockmaker", "geologist", "ferryman", "weaver", "beekeeper", "judge", "painter", "plumber",
    ),
    "opinion": (
        "far too dear", "a gift to the young", "ugly but useful", "the pride of the valley", "a waste of good stone",
        "ten years late", "a small miracle", "better than the old one", "a danger to cyclists",
    ),
    "plan": (
        "plant a row of lime trees", "repair the northern road", "vote on a new school", "buy a second ferry",
        "count the swans", "paint the station blue", "dig a deeper well", "open a museum of maps", "ban fireworks",
    ),
}  # fmt: skip
"""What an article may tell, by the name of the fact."""

SENTENCES: tuple[tuple[str, ...], ...] = (
    (
        "{person}, the {office} of {town}, opened the new {thing} on {day} {month}.",
        "On {day} {month} the new {thing} of {town} was opened by {person}, the {office}.",
        "The people of {town} have a new {thing} since {day} {month}, when {person}, the {office}, cut the ribbon.",
    ),
    (
        "It replaces the old one, which {cause} had destroyed.",
        "The old one had been lost to {cause} in the winter before.",
        "After {cause} had ruined the old one, nobody had expected it so soon.",
    ),
    (
        "The builders were {firm}, who asked for {cost} thousand crowns.",
        "For {cost} thousand crowns {firm} did the work in a single summer.",
        "It was built by {firm} and cost {cost} thousand crowns.",
    ),
    (
        "A procession of {crowd} guests was led by {leader}.",
        "Behind {leader} walked {crowd} guests from every part of the town.",
        "There were {crowd} guests, and {leader} went in front of them.",
    ),
    (
        "{critic}, a {profession}, called it {opinion}.",
        "One guest, the {profession} {critic}, said that it was {opinion}.",
        "Not all agreed: to {critic}, a {profession}, it is {opinion}.",
    ),
    (
        "The council will next {plan}.",
        "Before the year is out the council wants to {plan}.",
        "Asked what comes next, the council promised to {plan}.",
    ),
)
"""The sentences of an article in their order, each in three wordings."""

QUESTIONS = (
    ("person", "Who opened the {thing} of {town}?"),
    ("firm", "Who built the {thing} of {town}?"),
    ("leader", "Who led the procession to the {thing} of {town}?"),
    ("cause", "What destroyed the old {thing} of {town}?"),
)
"""What the readers ask: the fact that answers it, and the question."""


def person(rng: random.Random) -> str:
    """Returns an invented first and last name."""
    return f"{name(rng, FIRST)} {name(rng, LAST)}"


def town(rng: random.Random) -> str:
    """Returns the name of an invented town."""
    return name(rng, TOWN)


def name(rng: random.Random, parts: tuple[tuple[str, ...], ...]) -> str:
    """Returns a name made of one of each of the parts."""
    return "".join(rng.choice(choices) for choices in parts)
