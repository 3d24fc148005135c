"""User data of any layout as questions with answers, for the evaluation row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dipo_lightning.data.encoding import PromptStyle, TextStyle, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
"""A row as read."""
T = TypeVar("T")


def evenly(rows: Sequence[T], most: int | None) -> list[T]:
    """Take at most ``most`` rows, spread evenly over all of them; None takes all."""
    if most is None or most >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // most] for i in range(most)]


def question_rows(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, text_tokens: int) -> list[Row]:
    """Give every row a ``question`` and an ``answer``.

    The answer of a conversation is its last turn; that of a plain text is its second half.

    Args:
        rows: From `dipo_lightning.data.rows.read_rows`.
        tokenizer: The model's tokenizer.
        text_tokens: Number of tokens used of a plain text, both halves together.
    """
    return [_question_row(row, tokenizer, text_tokens) for row in rows]


def row_style(rows: Sequence[Row], style: PromptStyle) -> PromptStyle:
    """Return the prompt style of the rows: the run's own, or, for plain text, one without prompt and end token."""
    if rows and "text" in rows[0]:
        return TextStyle(style.tokenizer, end=False)
    return style


def _question_row(row: Row, tokenizer: PreTrainedTokenizerBase, text_tokens: int) -> Row:
    if "messages" in row:
        return {**row, "question": conversation(row["messages"][:-1]), "answer": row["messages"][-1]["content"]}
    if "text" not in row:
        return row
    ids = encode(tokenizer, row["text"])
    text = row["text"] if len(ids) <= text_tokens else str(tokenizer.decode(ids[:text_tokens]))
    middle = _middle(text)
    rest = {key: value for key, value in row.items() if key != "text"}
    return {**rest, "question": text[:middle], "answer": text[middle:]}


def conversation(turns: Sequence[Mapping[str, str]]) -> str:
    """Return the text before the answer, for a reader: the question alone, or all turns."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _middle(text: str) -> int:
    """Return the start of the second half: the space nearest to the middle, or the middle itself."""
    text = text.rstrip()
    half = len(text) // 2
    spaces = [i for i, character in enumerate(text) if character.isspace() and text[:i].strip()]
    return min(spaces, key=lambda i: abs(i - half), default=half)
