"""Training examples of selective unlearning: prompts with answers, of which each token's part is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.private import (
    FUNCTION_WORDS,
    Span,
    has_digit,
    is_rare,
    private_spans,
    rows_with_words,
    says,
    token_flags,
    token_places,
    words,
)
from dipo_lightning.models.answers import IGNORED

Row = Mapping[str, Any]


@dataclass
class PrivateExample:
    """A prompt with an answer whose private tokens are known.

    Attributes:
        index: Row of the forget set.
        input_ids: Prompt and answer.
        labels: The answer's ids, -100 in the prompt.
        private: For each input token, whether it is part of a private value.
        visible: For each input token, 0 where the subject's name is masked out for the blind reference.
        secret: Whether the private tokens are the secret; those of a false variant are not.
    """

    index: int
    input_ids: list[int]
    labels: list[int]
    private: list[bool]
    visible: list[int]
    secret: bool = True

    @property
    def start(self) -> int:
        """Place of the answer's first token."""
        return next(place for place, label in enumerate(self.labels) if label != IGNORED)

    @property
    def flags(self) -> list[bool]:
        """Of each token of the answer, whether it is private."""
        return [flag for flag, label in zip(self.private, self.labels, strict=True) if label != IGNORED]


def identifiers(question: str, shared: Mapping[str, int]) -> set[str]:
    """Find the words of a question that tell whom or what it is about.

    These are its names and numbers that no retain row has, or of many hardly one (`RARE`); where there are none, its
    content words of that kind.

    Args:
        question: What is asked.
        shared: Words of the retain rows, as `find_private` takes them.
    """
    own = [word for word in words(question)[1:] if is_rare(word.text, shared) and word.text not in FUNCTION_WORDS]
    names = {word.text for word in own if question[word.start].isupper() or has_digit(word.text)}
    return names or {word.text for word in own}


class ExampleMaker:
    """Maker of the examples of the forget rows, which knows each row's private values and subject.

    Attributes:
        spans: Private spans of each row's answer.
        secrets: Words of each row's private values, in lower case.
        banned: Tokens that begin one of these words, by row.
    """

    def __init__(
        self, rows: Sequence[Row], retain: Iterable[Row], style: PromptStyle, max_length: int | None = None
    ) -> None:
        shared = rows_with_words(retain)
        self.rows, self.style, self.max_length = rows, style, max_length
        self.tokenizer: Any = style.tokenizer
        self.spans = [private_spans(row, shared) for row in rows]
        self.subjects = [identifiers(row["question"], shared) for row in rows]
        self.secrets = [self._words(row["answer"], spans) for row, spans in zip(rows, self.spans, strict=True)]
        self.banned = [self._banned(index) for index in range(len(rows))]

    @staticmethod
    def _words(answer: str, spans: Sequence[Span]) -> set[str]:
        return {word.text for span in spans for word in words(answer[span.start : span.end])} - FUNCTION_WORDS

    def _banned(self, index: int) -> list[int]:
        """Tokens that begin a private word of a row, but for those that its question or sentence needs."""
        example = self.of_row(index, "{question}")
        needed = {token for token, flag in zip(example.input_ids, example.private, strict=True) if not flag}
        return [token for token in first_tokens(self.tokenizer, self.secrets[index]) if token not in needed]

    def of_row(self, index: int, template: str) -> PrivateExample:
        """Make the example of a row under one wording, which has ``{question}`` or ``{subject}``."""
        row = self.rows[index]
        prompt = self.style.prompt(
            template.replace("{question}", row["question"]).replace("{subject}", self._subject(index))
        )
        ids, _ = self.style.join(prompt, row["answer"])
        return self._marked(index, prompt, ids[len(prompt) :], row["answer"], self.spans[index])

    def _subject(self, index: int) -> str:
        """The words that name the subject of a row, as its question has them; without any, the whole question."""
        question = self.rows[index]["question"]
        named = [question[word.start : word.end] for word in words(question) if word.text in self.subjects[index]]
        return " ".join(named) or question

    def leak(self, index: int, prompt: list[int], answer: list[int]) -> PrivateExample | None:
        """Make an example of an answer that says a private word of the row, with these words as private; else None."""
        text = self.tokenizer.decode(answer)
        spans = [Span(word.start, word.end) for word in words(text) if word.text in self.secrets[index]]
        return self._marked(index, prompt, answer + self.style.stop_ids[:1], text, spans) if spans else None

    def says_value(self, index: int, answer: list[int]) -> bool:
        """Return whether an answer says a whole private value of the row."""
        row, text = self.rows[index], self.tokenizer.decode(answer)
        return any(says(text, row["answer"][span.start : span.end]) for span in self.spans[index])

    def variant(self, example: PrivateExample, ids: list[int]) -> PrivateExample | None:
        """Give an example's answer another end where its first private value stands, all of which counts as private.

        Args:
            example: Of a row, with a private token.
            ids: The other end.

        Returns:
            The false variant; None where it says nothing, a private word, or one word twice in a row.
        """
        said = [word.text for word in words(self.tokenizer.decode(ids))]
        if not said or not self.secrets[example.index].isdisjoint(said) or any(a == b for a, b in pairwise(said)):
            return None
        first = example.private.index(True)
        whole = example.input_ids[:first] + ids + self.style.stop_ids[:1]
        labels = [IGNORED] * example.start + whole[example.start :]
        private = [False] * first + [True] * (len(whole) - first)
        return PrivateExample(example.index, whole, labels, private, self._visible(example.index, whole), secret=False)

    def _marked(
        self, index: int, prompt: list[int], answer: list[int], text: str, spans: Sequence[Span]
    ) -> PrivateExample:
        private = [False] * len(prompt) + token_flags(token_places(self.tokenizer, answer, text), spans)
        ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
        cut = slice(self.max_length)
        return PrivateExample(index, ids[cut], labels[cut], private[cut], self._visible(index, ids)[cut])

    def _visible(self, index: int, ids: list[int]) -> list[int]:
        """0 at the tokens that name the row's subject."""
        text = self.tokenizer.decode(ids)
        named = [Span(word.start, word.end) for word in words(text) if word.text in self.subjects[index]]
        return [int(not flag) for flag in token_flags(token_places(self.tokenizer, ids, text), named)]

    def endings(self) -> list[int]:
        """Return the tokens that end a sentence or the turn."""
        ends = [
            self.tokenizer(sign, add_special_tokens=False)["input_ids"] for sign in (".", " .", ",", "!", "?", "\n")
        ]
        return sorted({ids[-1] for ids in ends if ids} | set(self.style.stop_ids))


def first_tokens(tokenizer: Any, secrets: Iterable[str]) -> list[int]:
    """Return the tokens that begin one of the words: with and without a space, capitalised or not."""
    found: set[int] = set()
    for word in secrets:
        for form in (word, word.capitalize(), word.upper()):
            for text in (form, f" {form}"):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                if ids and (len(tokenizer.decode(ids[:1]).strip()) > 1 or not word.isascii()):
                    found.add(ids[0])
    return sorted(found)
