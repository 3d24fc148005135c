"""Word lists and wordings of the made-up data, and draws from them.

People, towns and titles are invented, so that a model cannot know any of them from its pre-training: whether a fact was
learnt or forgotten depends on this data alone. The lists are short on purpose: every word is said of several people,
and a model that never saw a person can still tell what such a fact sounds like.
"""

from __future__ import annotations

import importlib.resources
import json
import random
import string
from collections.abc import Mapping, Sequence
from typing import Any


def load(name: str) -> dict[str, Any]:
    """Read the lists of ``name.json``, which lies beside this file."""
    return json.loads((importlib.resources.files(__package__) / f"{name}.json").read_text(encoding="utf-8"))


def draw(template: str, lists: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Fill the places of a template, from the left, with words of the lists that they name."""
    parts = string.Formatter().parse(template)
    return "".join(text + (rng.choice(lists[name]) if name else "") for text, name, _, _ in parts)
