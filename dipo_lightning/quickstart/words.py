"""Random draws from the word lists and wordings of the invented data.

People, towns and titles are invented, so that no model knows them from pre-training, and a fact can be learnt from this
data alone. The lists are short on purpose: every word applies to several people, so that a model which never saw a
person still knows the form of such a fact.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence


def draw(template: str, lists: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Fill the placeholders of a template, from left to right, with words of the lists that they name."""
    parts = string.Formatter().parse(template)
    return "".join(text + (rng.choice(lists[name]) if name else "") for text, name, _, _ in parts)
