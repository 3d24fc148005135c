"""Tokenised rows: examples in a prompt style, all at once or on demand, and running text in pieces."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dipo_lightning.data.encoding import PromptStyle, checked_text, encode, start_ids
from dipo_lightning.data.loader import Example
from dipo_lightning.data.prompts import ChatStyle
from dipo_lightning.data.rows import shown
from dipo_lightning.errors import InputError, check_choice, check_numbers
from dipo_lightning.models.answers import IGNORED, first_supervised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANK_LINE = "\n\n"
LARGE = 20_000
"""Number of rows above which a set is tokenised on demand."""
LONGEST = 1000
"""Number of longest rows of such a set that are tokenised before the first step to check that they fit."""
KEPT = 4096
"""Number of examples that a large set caches, and of question-answer pairs whose ids are cached for repeated rows."""
TEXT_AT_ONCE, TEXT_PART = 20_000_000, 1_000_000
"""Maximum length in characters of running text that is tokenised at once, and length of the parts of longer text."""


@dataclass
class TokenizedRows(Sequence[Example]):
    """Tokenised rows, with those that were cut or left out.

    Attributes:
        examples: Each with ``input_ids`` and ``labels`` (lists of one length) and ``index`` (the row's own).
        truncated: Number of rows cut at ``max_length``.
        dropped: The rows left out: ``{"index": ..., "reason": ...}``.
        kept: Positions of the rows that the examples were made from.
    """

    examples: list[Example] = field(default_factory=list)
    truncated: int = 0
    dropped: list[dict[str, Any]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def __getitem__(self, position: Any) -> Any:
        """Example or examples at a position or slice."""
        return self.examples[position]

    def __iter__(self) -> Iterator[Example]:
        """The examples in the order of their rows."""
        return iter(self.examples)

    def report(self, name: str = "") -> str:
        """One line for a log, such as ``400 forget rows: 3 cut at the end, 1 left out (row 7: ...)``."""
        line = f"{len(self.examples) + len(self.dropped)} {name} rows".replace("  ", " ")
        notes = [f"{self.truncated} cut at the end"] if self.truncated else []
        if self.dropped:
            notes.append(f"{len(self.dropped)} left out (row {self.dropped[0]['index']}: {self.dropped[0]['reason']})")
        return f"{line}: {', '.join(notes)}" if notes else line


class OnDemand(Sequence[Example]):
    """Examples that are made on access."""

    @abstractmethod
    def make(self, index: int) -> Example:
        """Make the example at a position from 0."""

    def __getitem__(self, position: Any) -> Any:
        """Example or examples at a position or slice."""
        if isinstance(position, slice):
            return [self.make(index) for index in range(len(self))[position]]
        return self.make(range(len(self))[position])


class CheckedOnDemand(OnDemand):
    """Examples that are made on access, and checked then.

    Attributes:
        checks: Functions that raise an error for an example, by name.
        looked_at: Examples that are checked before the first step.
    """

    checks: dict[str, Callable[[Example], object]]
    looked_at: Sequence[Example]

    def __getitem__(self, position: Any) -> Any:
        """Checked example or examples at a position or slice."""
        found = super().__getitem__(position)
        for example in found if isinstance(position, slice) else [found]:
            for check in self.checks.values():
                check(example)
        return found

    def check_each(self, check: Callable[[Example], object], name: str = "model") -> None:
        """Call ``check`` with the examples of ``looked_at`` now, and with every other one when it is used.

        It is added to the checks of other names; the one of this name is replaced.
        """
        self.checks[name] = check
        for example in self.looked_at:
            check(example)


class LazyRows(CheckedOnDemand):
    """Rows of a large set, tokenised when a batch needs them; the latest are cached.

    Args:
        rows: From `dipo_lightning.data.rows.read_rows`.
        style: Prompt style.
        max_length: Maximum length of an example in tokens; the end of a longer one is cut off.
        looked_at: Examples that are checked before the first step.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], style: PromptStyle, max_length: int, looked_at: Sequence[Example] = ()
    ) -> None:
        self.rows, self.style, self.max_length, self.looked_at = rows, style, max_length, looked_at
        self._encode = Remembering(style)
        self._made: dict[int, Example] = {}
        self.checks = {}

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def make(self, index: int) -> Example:
        """Tokenise the row at a position."""
        if index not in self._made:
            if len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            self._made[index] = self._tokenized(index)
        return self._made[index]

    def _tokenized(self, index: int) -> Example:
        row = self.rows[index]
        try:
            return tokenized_row(row, row.get("index", index), self._encode, self.max_length)[0]
        except InputError as error:
            raise InputError(_placed(error, row, index)) from error


class Pieces(OnDemand):
    """Running text in pieces of one length, every token supervised.

    Args:
        ids: Token ids of the whole text, (tokens,) int32.
        start: Ids at the beginning of each piece: BOS, or none.
        length: Tokens per piece.
    """

    def __init__(self, ids: np.ndarray, start: list[int], length: int) -> None:
        self.ids, self.start, self.size = ids, start, length - len(start)
        count = -(-len(ids) // self.size)
        # Without BOS nothing predicts a lone last token.
        lone = count > 1 and len(start) + len(ids) - (count - 1) * self.size <= max(1, len(start))
        self.pieces = count - lone

    def __len__(self) -> int:
        """Number of pieces."""
        return self.pieces

    def make(self, index: int) -> Example:
        """Cut out the piece at a position."""
        ids = self.start + self.ids[index * self.size : (index + 1) * self.size].tolist()
        first = max(1, len(self.start))
        return {"input_ids": ids, "labels": [IGNORED] * first + ids[first:], "index": index}


def tokenize_rows(
    rows: Sequence[Mapping[str, Any]],
    style: PromptStyle,
    max_length: int | None = None,
    on_missing: Literal["raise", "skip"] = "raise",
) -> TokenizedRows:
    """Tokenise rows under one prompt style.

    Args:
        rows: From `read_rows`, or a benchmark's.
        style: Prompt style.
        max_length: Maximum length of an example in tokens; the end of a longer one is cut off.
        on_missing: ``raise`` stops at a row with no token left to supervise; ``skip`` leaves it out and counts it.

    Raises:
        InputError: ``on_missing`` is ``raise``, and a row has no token to supervise or cannot be written in the style.
    """
    check_choice("data", "on_missing", on_missing, ("raise", "skip"))
    check_numbers("data", {"max_length": max_length}, least=2)
    tokenized = TokenizedRows()
    encode_row = Remembering(style)
    for number, row in enumerate(shown(rows, "tokenising", total=len(rows))):
        index = int(row.get("index", number))
        try:
            made, cut = tokenized_row(row, index, encode_row, max_length)
        except InputError as error:
            if on_missing == "raise":
                raise InputError(_placed(error, row, index)) from error
            tokenized.dropped.append({"index": index, "reason": str(error)})
            continue
        tokenized.truncated += cut
        tokenized.kept.append(number)
        tokenized.examples.append(made)
    return tokenized


def tokenized_row(
    row: Mapping[str, Any], index: int, encode_row: Remembering, max_length: int | None
) -> tuple[Example, bool]:
    """Return a row's example, and whether its end was cut off; an `InputError` without a token to supervise."""
    ids, labels = encode_row(row)
    cut = max_length is not None and len(ids) > max_length
    if all(label == IGNORED for label in labels[:max_length]):
        prompt = first_supervised(labels)
        raise InputError(
            f"its prompt alone has {prompt} tokens and data.max_length is {max_length}, which leaves nothing "
            f"of the answer; set data.max_length to {prompt + 1} or more, or shorten the row."
            if cut
            else "it has no token to supervise."
        )
    return {"input_ids": ids[:max_length], "labels": labels[:max_length], "index": index}, cut


def _placed(error: InputError, row: Mapping[str, Any], index: int) -> str:
    return f"{row.get('where', f'row {index}')}: {error} Or leave such rows out with data.on_missing: skip."


def prompts_without_room(rows: Sequence[Mapping[str, Any]], style: PromptStyle, max_length: int) -> list[int]:
    """Return the positions of rows whose prompt may leave no room for the answer within ``max_length`` tokens.

    This is estimated from the text alone, for a set too large to be tokenised: a token is at least one byte, and the
    style adds the same number of tokens to every question.
    """
    around = len(style.prompt("?"))
    found = []
    for position, row in enumerate(shown(rows, "looking at prompts", total=len(rows))):
        asked = [turn["content"] for turn in row["messages"][:-1]] if "messages" in row else [row["question"]]
        if sum(len(text.encode()) + around for text in asked) >= max_length:
            found.append(position)
    return found


class Chosen(Sequence[dict[str, Any]]):
    """View of the rows of a set at some positions."""

    def __init__(self, rows: Sequence[dict[str, Any]], positions: Sequence[int]) -> None:
        self.rows, self.positions = rows, positions

    def __len__(self) -> int:
        """Number of chosen rows."""
        return len(self.positions)

    def __getitem__(self, place: Any) -> Any:
        """Chosen row at a place, or rows of a slice."""
        if isinstance(place, slice):
            return [self.rows[position] for position in self.positions[place]]
        return self.rows[self.positions[place]]


def pieces(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int = 2048) -> Pieces:
    """Cut running text into pieces of ``length`` tokens, every one supervised.

    The documents are joined by a blank line, tokenised as one text and cut. If the tokenizer adds BOS, each piece
    begins with it and holds ``length - 1`` tokens of the text. The last piece may be shorter.
    """
    check_numbers("", {"length": length}, least=2)
    if not texts:
        raise InputError("There is no document to cut into pieces.")
    start = start_ids(tokenizer)
    parts = [np.array(encode(tokenizer, text), np.int32) for text in _joined(texts)]
    return Pieces(np.concatenate(parts), start, length)


def _joined(texts: Sequence[str]) -> Iterator[str]:
    """Yield the documents joined by blank lines: as one text, or in parts of about `TEXT_PART` characters."""
    whole = sum(len(checked_text(text, f"Document {number}")) for number, text in enumerate(texts))
    most = TEXT_AT_ONCE if whole <= TEXT_AT_ONCE else TEXT_PART
    part: list[str] = []
    size = 0
    for text in shown(texts, "tokenising", total=len(texts)):
        if size > most:
            yield BLANK_LINE.join([*part, ""])
            part, size = [], 0
        part.append(text)
        size += len(text)
    yield BLANK_LINE.join(part)


class Remembering:
    """Tokenisation of rows in one style, with a cache for repeated rows, which training files may contain."""

    def __init__(self, style: PromptStyle) -> None:
        self.style = style
        self._known: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    def __call__(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Return the ids and labels of a row of any layout; the lists must not be changed."""
        _check_kind(row, self.style)
        question, answer = row.get("question"), row.get("answer")
        if "messages" in row or "text" in row or not (isinstance(question, str) and isinstance(answer, str)):
            return example_of(row, self.style)
        if (question, answer) not in self._known:
            if len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[question, answer] = self.style.example(question, answer)
        return self._known[question, answer]


def example_of(row: Mapping[str, Any], style: PromptStyle) -> tuple[list[int], list[int]]:
    """Return the ids and labels of a row of any layout."""
    if "messages" in row and isinstance(style, ChatStyle):
        return style.conversation(row["messages"])
    if "messages" in row:
        question, answer = (turn["content"] for turn in row["messages"])
        return style.example(question, answer)
    if "text" in row:
        return style.example("", row["text"])
    return style.example(row["question"], row["answer"])


def _check_kind(row: Mapping[str, Any], style: PromptStyle) -> None:
    """Refuse a row that the style can't write."""
    if "text" in row and style.name != "text":
        raise InputError(
            f"The rows are plain text, which prompt style {style.name} cannot write: take the style text (data.prompt: "
            "text)."
        )
    if "messages" in row and not isinstance(style, ChatStyle):
        roles = [turn["role"] for turn in row["messages"]]
        if roles != ["user", "assistant"]:
            raise InputError(
                f"Prompt style {style.name} writes one question and its answer, not the turns {roles}: take the style "
                "chat (data.prompt: chat)."
            )
