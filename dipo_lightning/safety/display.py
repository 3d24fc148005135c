"""A model's text made safe to display, tables in Markdown, and the changes between two texts, word by word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

LONGEST = 4000
_KEPT = "\n\t\u200c\u200d"  # the joiners belong to words of some scripts, and to emoji
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, the cursor, erasing
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC and the like
    r"|\x1b[ -/]*[0-~]?"
)
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


class Piece(NamedTuple):
    """A stretch of text, and whether it differs from the other text."""

    text: str
    changed: bool


def visible(text: str, longest: int = LONGEST) -> str:
    r"""Make a text visible: control characters and direction marks become codes such as ``\u001b``; a long one is cut.

    HTML is escaped by the template, not here.
    """
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(_shown(character) for character in cut.replace("\r\n", "\n"))


def printable(text: str) -> str:
    """Remove everything that a terminal would interpret: escape sequences, control characters, direction marks."""
    plain = _ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n"))
    return "".join(character for character in plain if not _hidden(character))


def table_in_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown, from cells that are escaped already."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def word_changes(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Compare two texts word by word.

    Returns:
        The pieces of each text in order; joined they are that text. White space between two changed words counts as
        changed with them.
    """
    first, second = _WORD.findall(before), _WORD.findall(after)
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    for tag, i, j, k, m in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for side, words in zip(pieces, (first[i:j], second[k:m]), strict=True):
            _add(side, "".join(words), tag != "equal")
    return pieces


def _add(pieces: list[Piece], text: str, changed: bool) -> None:
    """Add a piece; a lone space that both texts have doesn't interrupt a changed stretch."""
    if not text:
        return
    if len(pieces) >= 2 and changed and pieces[-2].changed and pieces[-1].text.isspace():
        space = pieces.pop().text
        pieces[-1] = Piece(pieces[-1].text + space + text, True)
    else:
        pieces.append(Piece(text, changed))


def _hidden(character: str) -> bool:
    return character not in _KEPT and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn")


def _shown(character: str) -> str:
    if not _hidden(character):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
