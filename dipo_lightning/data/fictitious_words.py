"""The word lists that invented authors are made of.

People, towns and titles are composed from parts, so that a model cannot know any of them from its pre-training: whether
a fact was learnt or forgotten then depends on this data alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_STARTS = ("Ma", "Te", "Or", "Li", "Sa", "Jo", "Ke", "Ru", "Vi", "Da", "Ne", "Ha", "Bri", "Cal", "Fen", "Il")
FIRST_ENDS = ("rin", "vek", "dala", "mona", "ric", "sela", "tar", "nia", "vin", "zo", "lise", "mund", "reth", "wen")
LAST_STARTS = ("Tol", "Bran", "Quill", "Ost", "Hal", "Mer", "Dusk", "Fal", "Grim", "Lor", "Pel", "Sund", "Var", "Wyn")
LAST_ENDS = ("vik", "mere", "worth", "berg", "aro", "stead", "ova", "combe", "hart", "ley", "quist", "idze", "man")
TOWN_STARTS = ("Al", "Bel", "Cor", "Dun", "El", "Glen", "Har", "Kirr", "Lun", "Mor", "Nor", "Pra", "Sel", "Tra", "Ul")
TOWN_ENDS = ("dova", "mouth", "field", "haven", "grad", "port", "minster", "ria", "sund", "gate", "kova", "bridge")
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
    first = rng.choice(FIRST_STARTS) + rng.choice(FIRST_ENDS)
    return f"{first} {rng.choice(LAST_STARTS)}{rng.choice(LAST_ENDS)}"


def town(rng: random.Random) -> str:
    """Returns the name of an invented town."""
    return rng.choice(TOWN_STARTS) + rng.choice(TOWN_ENDS)


def title(rng: random.Random) -> str:
    """Returns the title of an invented book."""
    return f"The {rng.choice(TITLE_FIRST)} {rng.choice(TITLE_SECOND)}"


def award(rng: random.Random) -> str:
    """Returns the name of an invented literary prize."""
    return f"{rng.choice(AWARD_FIRST)} {rng.choice(AWARD_SECOND)} Prize"


def year(rng: random.Random) -> str:
    """Returns a year of birth."""
    return str(rng.randint(1921, 1989))


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
