"""Rows that stand in two sets which must have none in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dipo_lightning.errors import InputError

Rows = Sequence[Mapping[str, Any]]


def overlap(first: Rows, second: Rows) -> list[tuple[int, int]]:
    """Positions of equal rows in two sets, whatever their case and white space.

    Args:
        first: Rows with ``question`` and ``answer``, or ``messages``, or ``text``.
        second: The same.

    Returns:
        One pair ``(position in first, position in second)`` for each row of ``first`` that ``second`` has too.
    """
    places: dict[tuple[str, ...], int] = {}
    for position, row in enumerate(second):
        places.setdefault(_key(row), position)
    found = [(position, places.get(_key(row))) for position, row in enumerate(first)]
    return [(position, other) for position, other in found if other is not None]


def refuse_overlap(
    first: Rows,
    second: Rows,
    names: tuple[str, str] = ("forget", "retain"),
    remedy: str = "Take such rows out of one of the two.",
) -> None:
    """Stop where two sets share rows: what is trained to be forgotten and kept at once comes out as neither.

    Args:
        first: Rows with ``question`` and ``answer``, or ``messages``, or ``text``.
        second: The same.
        names: What the sets are called in the message.
        remedy: What to do, for the message.

    Raises:
        InputError: They do; names the places of the first shared row and says how many there are.
    """
    pairs = overlap(first, second)
    if pairs:
        position, other = pairs[0]
        raise InputError(
            f"{len(pairs)} of {len(first)} {names[0]} rows are {names[1]} rows too. The first: "
            f"{_place(first[position], position, names[0])} is {_place(second[other], other, names[1])}. "
            f"{remedy}"
        )


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "text" in row:
        texts = [row["text"]]
    elif "messages" in row:
        texts = [message["content"] for message in row["messages"]]
    else:
        texts = [row["question"], row["answer"]]
    return tuple(" ".join(text.split()).casefold() for text in texts)


def _place(row: Mapping[str, Any], position: int, name: str) -> str:
    return str(row.get("where", f"{name} row {position}"))
