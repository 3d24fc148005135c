"""Other answers for the rows to forget, such as the "I don't know" lines that IdkDPO prefers to the true answer."""

from __future__ import annotations

import importlib.resources
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.pairs import Example
from dipo_lightning.data.tokenization import tokenize_rows
from dipo_lightning.errors import InputError

SHIPPED = "idk"
"""The name of the list that comes with the package: a hundred ways to say that one does not know."""


class Alternatives:
    """Other answer for a forget row, drawn as a pure function of (seed, epoch, index).

    Args:
        lines: The answers to draw from.
        rows: The forget rows, in the order of their tokenised examples.
        style: The prompt style of the forget rows; the alternative stands behind the same prompt.
        max_length: Longest example in tokens.
        seed: Seed of the draw.

    Raises:
        InputError: The rows are running text, which is no answer to anything.
    """

    def __init__(
        self,
        lines: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        style: PromptStyle,
        max_length: int,
        seed: int = 0,
    ) -> None:
        if rows and "text" in rows[0]:
            raise InputError(
                "data.alternatives is set, but the forget rows are plain text: there is no answer to replace."
            )
        self.lines, self.rows, self.style, self.max_length, self.seed = lines, rows, style, max_length, seed

    def line(self, epoch: int, index: int) -> str:
        """Return the alternative of forget row ``index`` in ``epoch``."""
        # A string seeds the same everywhere: it is hashed with SHA-512, not with the process's own hash.
        return random.Random(f"{self.seed} {epoch} {index}").choice(self.lines)

    def __call__(self, epoch: int, index: int) -> Example:
        """Return the tokenised alternative of forget row ``index`` in ``epoch``."""
        row = with_answer(self.rows[index], self.line(epoch, index))
        return tokenize_rows([row], self.style, self.max_length).examples[0]

    def to_longest(self) -> Sequence[Example]:
        """Return every alternative to the longest question, tokenised."""
        row = max(self.rows, key=lambda row: len(str(row.get("question") or row.get("messages"))))
        return tokenize_rows([with_answer(row, line) for line in self.lines], self.style, self.max_length)


def with_answer(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Return ``row`` with another answer: the last turn, where it is a conversation."""
    if "messages" in row:
        return {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": answer}]}
    return {**row, "answer": answer}


def read_alternatives(source: str | Sequence[str]) -> list[str]:
    """Read alternative answers.

    Args:
        source: ``idk`` for the list that comes with the package, a text file with one answer a line, or the answers.

    Raises:
        InputError: There is no such file, it is not UTF-8 text, or there is no answer in it.
    """
    if not isinstance(source, str):
        lines = [line.strip() for line in source]
    elif source == SHIPPED:
        lines = (importlib.resources.files("dipo_lightning.data") / "idk.txt").read_text(encoding="utf-8").splitlines()
    else:
        lines = [line.strip() for line in _read(Path(source).expanduser()).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"data.alternatives has no answer in it ({source!r}); write one a line, or take {SHIPPED!r}.")
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"data.alternatives: {path} cannot be read ({error.strerror}); name a text file with one answer a line, or "
            f"write {SHIPPED!r} for the list that comes with the package."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"data.alternatives: {path} is not UTF-8 text (byte {error.start}).") from error
