"""Rows to token ids, once: examples under a prompt style, and pieces of one length for running text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dipo_lightning.data.chat import ChatStyle
from dipo_lightning.data.prompts import PromptStyle, checked, encode, start_ids
from dipo_lightning.errors import InputError
from dipo_lightning.models.token_batch import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANK_LINE = "\n\n"


@dataclass
class TokenizedRows(Sequence[dict[str, Any]]):
    """Tokenised rows, and what became of the rest.

    Attributes:
        examples: Each with ``input_ids`` and ``labels`` (lists of one length) and ``index`` (the row's own).
        truncated: How many rows were cut at ``max_length``.
        dropped: The rows left out: ``{"index": ..., "reason": ...}``.
    """

    examples: list[dict[str, Any]] = field(default_factory=list)
    truncated: int = 0
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def __getitem__(self, position: Any) -> Any:
        """Example or examples at a position or slice."""
        return self.examples[position]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The examples in the order of their rows."""
        return iter(self.examples)

    def report(self, name: str = "") -> str:
        """One line for a log, such as ``400 forget rows: 3 cut at the end, 1 left out (row 7: ...)``."""
        line = f"{len(self.examples) + len(self.dropped)} {name} rows".replace("  ", " ")
        notes = [f"{self.truncated} cut at the end"] if self.truncated else []
        if self.dropped:
            notes.append(f"{len(self.dropped)} left out (row {self.dropped[0]['index']}: {self.dropped[0]['reason']})")
        return f"{line}: {', '.join(notes)}" if notes else line


def tokenize_rows(
    rows: Sequence[Mapping[str, Any]],
    style: PromptStyle,
    max_length: int | None = None,
    on_missing: Literal["raise", "skip"] = "raise",
) -> TokenizedRows:
    """Tokenise rows under one prompt style.

    Args:
        rows: From `dipo_lightning.data.files.read_rows` or `dipo_lightning.benchmarks.tofu.data.load_tofu`.
        style: How a row is written.
        max_length: Longest example in tokens; the end of a longer one is cut off.
        on_missing: What to do with a row of which nothing is left to supervise: stop, or leave it out and count it.

    Raises:
        InputError: ``on_missing`` is ``raise`` and there is such a row, or no row is left, or the style cannot write
            rows of this kind.
    """
    if on_missing not in ("raise", "skip"):
        raise InputError(f"on_missing is {on_missing!r}; it is 'raise' or 'skip'.")
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length is {max_length}; an example has at least 2 tokens.")
    tokenized = TokenizedRows()
    for number, row in enumerate(rows):
        index = int(row.get("index", number))
        try:
            _check_kind(row, style)
            ids, labels = _example(row, style)
            cut = max_length is not None and len(ids) > max_length
            if all(label == IGNORED for label in labels[:max_length]):
                reason = f"its prompt alone has {max_length} tokens or more" if cut else "it has no token to supervise"
                raise InputError(f"{reason}; raise max_length, or shorten the row." if cut else f"{reason}.")
        except InputError as error:
            if on_missing == "raise":
                place = row.get("where", f"row {index}")
                raise InputError(f"{place}: {error} Or leave such rows out with on_missing: skip.") from error
            tokenized.dropped.append({"index": index, "reason": str(error)})
            continue
        if cut:
            tokenized.truncated += 1
        tokenized.examples.append({"input_ids": ids[:max_length], "labels": labels[:max_length], "index": index})
    if not tokenized.examples:
        raise InputError(f"None of {len(rows)} rows is left: {tokenized.report()}.")
    return tokenized


def pieces(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int = 2048) -> list[dict[str, Any]]:
    """Running text in pieces of one length, every token supervised.

    The documents are joined by a blank line, tokenised as one text and cut; each piece begins with BOS where the
    tokenizer has that habit, so with it a piece holds ``length - 1`` tokens of the text. The last one may be shorter.

    Args:
        texts: Documents.
        tokenizer: The model's tokenizer.
        length: Tokens of a piece.

    Returns:
        Examples with ``input_ids``, ``labels`` and ``index`` (the piece's number).

    Raises:
        InputError: There is no document, or an empty one, or ``length`` is below 2.
    """
    if length < 2:
        raise InputError(f"length is {length}; a piece has at least 2 tokens.")
    if not texts:
        raise InputError("There is no document to cut into pieces.")
    text = BLANK_LINE.join(checked(text, f"document {number}") for number, text in enumerate(texts))
    start, ids = start_ids(tokenizer), encode(tokenizer, text)
    size = length - len(start)
    first = max(1, len(start))
    examples: list[dict[str, Any]] = []
    for index, begin in enumerate(range(0, len(ids), size)):
        piece = start + ids[begin : begin + size]
        # Without BOS nothing predicts a lone last token.
        if len(piece) > first or not examples:
            examples.append({"input_ids": piece, "labels": [IGNORED] * first + piece[first:], "index": index})
    return examples


def _example(row: Mapping[str, Any], style: PromptStyle) -> tuple[list[int], list[int]]:
    if "messages" in row and isinstance(style, ChatStyle):
        return style.conversation(row["messages"])
    if "messages" in row:
        question, answer = (turn["content"] for turn in row["messages"])
        return style.example(question, answer)
    if "text" in row:
        return style.example("", row["text"])
    return style.example(row["question"], row["answer"])


def _check_kind(row: Mapping[str, Any], style: PromptStyle) -> None:
    """Whether the style can write rows like this one."""
    if "text" in row and style.name != "text":
        raise InputError(f"The rows are plain text, which prompt style {style.name} can't write: take the style text.")
    if "messages" in row and not isinstance(style, ChatStyle):
        roles = [turn["role"] for turn in row["messages"]]
        if roles != ["user", "assistant"]:
            raise InputError(
                f"Prompt style {style.name} writes one question and its answer, not the turns {roles}: use chat."
            )
