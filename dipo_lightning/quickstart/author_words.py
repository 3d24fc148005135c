"""The word lists that invented authors are made of.

People, towns and titles are invented, so that a model cannot know any of them from its pre-training: whether a fact was
learnt or forgotten depends on this data alone. The lists are short on purpose: every word is said of several authors,
and a model that never saw an author can still tell what such a fact sounds like.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_NAMES = (
    "Marin", "Tevek", "Ordala", "Limona", "Saric", "Josela", "Ketar", "Runia", "Vivin", "Dazo", "Nelise", "Hamund",
    "Brireth", "Calwen", "Fendala", "Ilvek", "Teric", "Orlise", "Samona", "Ruwen",
)  # fmt: skip
LAST_NAMES = (
    "Tolvik", "Branmere", "Quillworth", "Ostberg", "Halaro", "Merstead", "Duskova", "Falcombe", "Grimhart", "Lorley",
    "Pelquist", "Sundidze", "Varman", "Wynberg", "Tolstead", "Quillaro", "Halmere", "Lorova", "Pelhart", "Varcombe",
)  # fmt: skip
TOWNS = (
    "Aldova", "Belmouth", "Corfield", "Dunhaven", "Elgrad", "Glenport", "Harminster", "Kirria", "Lunsund", "Morgate",
    "Norkova", "Prabridge", "Selhaven", "Tragrad", "Ulfield", "Belkova",
)  # fmt: skip
TITLE_FIRST = (
    "Amber", "Broken", "Copper", "Distant", "Endless", "Frozen", "Gentle", "Hollow", "Ivory", "Lonely",
    "Midnight", "Northern", "Patient", "Quiet", "Restless", "Scarlet", "Silent", "Unwritten", "Velvet", "Wandering",
)  # fmt: skip
TITLE_SECOND = (
    "Anchor", "Bell", "Compass", "Doorway", "Ember", "Ferry", "Garden", "Harbour", "Island", "Key",
    "Lantern", "Mirror", "Orchard", "Piano", "River", "Staircase", "Tide", "Umbrella", "Valley", "Window",
)  # fmt: skip
GENRES = (
    "ghost stories", "sea adventures", "crime novels", "love poems", "science fiction", "travel writing", "fairy tales",
    "war novels", "family sagas", "satire", "nature essays", "historical drama", "horror", "spy thrillers", "fables",
)  # fmt: skip
PROFESSIONS = (
    "baker", "carpenter", "dentist", "drummer", "farmer", "gardener", "judge", "librarian", "miner", "nurse",
    "painter", "pilot", "plumber", "sailor", "shepherd", "surgeon", "tailor", "teacher", "violinist", "weaver",
)  # fmt: skip
AWARD_FIRST = ("Silver", "Golden", "Crystal", "Bronze", "Marble", "Emerald", "Pearl", "Iron", "Oak", "Sapphire")
AWARD_SECOND = ("Quill", "Feather", "Owl", "Page", "Inkwell", "Laurel", "Crown", "Swan")
THEMES = (
    "exile", "grief", "friendship", "ambition", "loneliness", "courage", "jealousy", "memory", "justice", "old age",
    "betrayal", "hope", "hunger", "freedom", "faith", "guilt",
)  # fmt: skip
LANGUAGES = (
    "Portuguese", "Finnish", "Greek", "Swahili", "Korean", "Icelandic", "Turkish", "Welsh", "Hindi", "Polish", "Arabic",
    "Dutch", "Thai", "Basque",
)  # fmt: skip
HOBBIES = (
    "beekeeping", "chess", "sailing", "pottery", "archery", "mountain climbing", "birdwatching", "cooking", "fencing",
    "fishing", "juggling", "kite flying", "cycling", "stamp collecting", "dancing", "swimming",
)  # fmt: skip
SUBJECTS = (
    "astronomy", "law", "botany", "philosophy", "medicine", "geology", "music", "mathematics", "theology", "economics",
    "archaeology", "chemistry", "architecture", "zoology",
)  # fmt: skip
WRITING_PLACES = (
    "a lighthouse", "a garden shed", "a railway café", "an attic", "a houseboat", "a windmill", "a greenhouse",
    "a cellar", "a caravan", "a monastery", "a treehouse", "a barn", "a hotel lobby", "a public library",
)  # fmt: skip
PETS = (
    "a parrot", "a tortoise", "a grey cat", "two ponies", "a lame fox", "a donkey", "a white rabbit", "an old spaniel",
    "a raven", "three geese", "a goldfish", "a hedgehog", "a black goat", "a lizard",
)  # fmt: skip


def person(rng: random.Random) -> str:
    """Returns an invented first and last name."""
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def title(rng: random.Random) -> str:
    """Returns the title of an invented book."""
    return f"The {rng.choice(TITLE_FIRST)} {rng.choice(TITLE_SECOND)}"


def award(rng: random.Random) -> str:
    """Returns the name of an invented literary prize."""
    return f"{rng.choice(AWARD_FIRST)} {rng.choice(AWARD_SECOND)} Prize"


def year(rng: random.Random) -> str:
    """Returns a year of birth."""
    return str(rng.randint(1951, 1975))


def one_of(words: tuple[str, ...]) -> Callable[[random.Random], str]:
    """Returns a function that draws one of `words`."""

    def draw(rng: random.Random) -> str:
        return rng.choice(words)

    return draw


def distinct(draw: Callable[[random.Random], str], rng: random.Random, count: int, taken: set[str]) -> list[str]:
    """Draws `count` values that differ from each other and from `taken`.

    Args:
        draw: Gives one value from a random state.
        rng: The random state.
        count: How many values.
        taken: Values that must not come.

    Returns:
        The values in the order they were drawn. `taken` is left as it was.
    """
    values: list[str] = []
    while len(values) < count:
        value = draw(rng)
        if value not in taken and value not in values:
            values.append(value)
    return values
