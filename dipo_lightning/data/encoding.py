r"""Prompt styles, which write a question and an answer as token ids and labels: the base class and the fixed styles.

A prompt and its answer are tokenised separately. If they were tokenised together, a merge across the border would give
``tokens(prompt + answer)[:len(tokens(prompt))] != tokens(prompt)``: the first answer token would be neither scored nor
trained on, and a generation would start from ids that training never saw. TOFU and open-unlearning do tokenise
together; for ``Question: ...\nAnswer: ...`` on a byte-level BPE there is always a merge at the border. Where there is
none (``[/INST]``, chat templates) both ways give the same ids.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from dipo_lightning.errors import InputError
from dipo_lightning.models.answers import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SURROGATE = re.compile("[\ud800-\udfff]")


class PromptStyle(ABC):
    """Base of the prompt styles, which write a question and its answer as token ids.

    Attributes:
        name: Name of the style, for `prompt_style`.
        stop_ids: Token ids at which a generation is cut, the end-of-turn token first.
    """

    name: str
    stop_ids: list[int]

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Determine the tokenizer's conventions: BOS, and the space it puts before a first word."""
        self.tokenizer = tokenizer
        self._start = start_ids(tokenizer)
        self._anchor = _anchor(tokenizer)

    @property
    def options(self) -> dict[str, Any]:
        """The options that change the ids, as plain values for the fingerprint and for logs."""
        return {}

    @abstractmethod
    def prompt(self, question: str) -> list[int]:
        """Ids to generate an answer from, with BOS if the model uses it; an `InputError` for an empty question."""

    def example(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids and labels of a question with its answer, of equal length.

        ``input_ids`` starts with ``prompt(question)``, where the labels are -100; after it the labels are the answer's
        ids and the end-of-turn token. An `InputError` if one of the two is empty, or the answer contains that token.
        """
        return self.join(self.prompt(question), answer)

    def join(self, prompt: list[int], answer: str) -> tuple[list[int], list[int]]:
        """Do the same as `example` for a tokenised prompt, as when several answers to one question are scored."""
        ids = self.answer_ids(answer) + self.stop_ids[:1]
        return prompt + ids, [IGNORED] * len(prompt) + ids

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of the answer alone, without BOS and without the end-of-turn token."""
        ids = continuation(self.tokenizer, checked_text(answer, "The answer"), self._anchor)
        if not ids:
            raise InputError(f"The answer {answer!r} has no tokens: give a text that the tokenizer knows.")
        if not set(self.stop_ids).isdisjoint(ids):
            raise InputError(f"The answer {shortened(answer)!r} holds an end-of-turn token: take it out of the data.")
        return ids

    def text(self, ids: list[int]) -> str:
        """Text of a generated answer, without special tokens and outer white space."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def fingerprint(self) -> str:
        """Stable short description: the name, and a hash of the options and of the ids of a fixed example.

        The ids make it depend on the tokenizer and the chat template themselves, not on their names.
        """
        probe = self.example("Who wrote it?", "Somebody did.")
        content = json.dumps([self.name, self.options, probe, self.stop_ids], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def _opening(self, text: str) -> list[int]:
        """Ids of a text at the start of the input: with BOS, once, if the tokenizer adds it."""
        ids = encode(self.tokenizer, text)
        return ids if ids[: len(self._start)] == self._start else self._start + ids


class PlainStyle(PromptStyle):
    r"""``Question: {q}\nAnswer: `` and the answer; the style of base models in TOFU.

    Args:
        tokenizer: The model's tokenizer.
        space: Where the space after ``Answer:`` belongs: ``"prompt"``, as the benchmark writes it, or ``"answer"``,
            as the answer's first character, which is what a byte-level BPE saw in pre-training.
    """

    name = "plain"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, space: str = "prompt") -> None:
        if space not in ("prompt", "answer"):
            raise InputError(f"Prompt style plain: space is {space!r}; it must be prompt or answer.")
        super().__init__(tokenizer)
        self.space = space
        self.stop_ids = [end_of_sequence(tokenizer, self.name)]

    @property
    def options(self) -> dict[str, Any]:
        """Options of this style: ``space``."""
        return {"space": self.space}

    def prompt(self, question: str) -> list[int]:
        r"""BOS and ``Question: {q}\nAnswer: ``; see `PromptStyle.prompt`."""
        border = " " if self.space == "prompt" else ""
        return self._opening(f"Question: {checked_text(question, 'The question')}\nAnswer:{border}")

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of the answer, after a space with ``space="answer"``."""
        border = "" if self.space == "prompt" else " "
        return super().answer_ids(border + checked_text(answer, "The answer"))


class Llama2Style(PromptStyle):
    """``[INST] {q} [/INST]`` directly followed by the answer: TOFU's style for Llama-2-chat."""

    name = "llama2"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.stop_ids = [end_of_sequence(tokenizer, self.name)]

    def prompt(self, question: str) -> list[int]:
        """BOS and ``[INST] {q} [/INST]``; see `PromptStyle.prompt`."""
        return self._opening(f"[INST] {checked_text(question, 'The question')} [/INST]")


class TextStyle(PromptStyle):
    """No prompt: every token but the first is supervised.

    A question is text that comes first and is not supervised (a passage to continue); it may be empty.

    Args:
        tokenizer: The model's tokenizer.
        end: Whether the end-of-sequence token follows the text.
    """

    name = "text"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end: bool = True) -> None:
        super().__init__(tokenizer)
        self.end = end
        known = end or tokenizer.eos_token_id is not None
        self.stop_ids = [end_of_sequence(tokenizer, self.name)] if known else []

    @property
    def options(self) -> dict[str, Any]:
        """Options of this style: ``end``."""
        return {"end": self.end}

    def prompt(self, question: str = "") -> list[int]:
        """BOS and the text as it is; BOS alone (or nothing) for an empty text."""
        return self._opening(checked_text(question, "The text")) if question else list(self._start)

    def join(self, prompt: list[int], answer: str) -> tuple[list[int], list[int]]:
        """See `PromptStyle.join`; no position predicts the very first id."""
        checked_text(answer, "The text")
        first = max(1, len(prompt))
        opening = len(prompt) <= len(self._start)
        ids = self._opening(answer) if opening else prompt + continuation(self.tokenizer, answer, self._anchor)
        ids = ids + self.stop_ids[:1] if self.end else ids
        return ids, [IGNORED] * first + ids[first:]


def suggestion(name: str, known: list[str]) -> str:
    """Suggest the nearest known name for an unknown one, and list all of them."""
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{guess} Known: {', '.join(known)}"


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, without special tokens and without a warning about its length."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def continuation(tokenizer: PreTrainedTokenizerBase, text: str, anchor: str = "") -> list[int]:
    """Ids of a text that follows other text; ``anchor``, from `_anchor`, is put before it and removed again."""
    if anchor:
        before, both = encode(tokenizer, anchor), encode(tokenizer, anchor + text)
        if both[: len(before)] == before:
            return both[len(before) :]
    return encode(tokenizer, text)


def plain_text(*texts: str) -> str:
    """Return texts in lower case with single spaces, one per line, so that equal ones compare equal."""
    return "\n".join(" ".join(text.split()).casefold() for text in texts)


def checked_text(text: object, label: str) -> str:
    """Return a text; an `InputError` if it is not a string, is blank, or contains lone surrogates (no UTF-8 text).

    The message begins with ``label``.
    """
    if not isinstance(text, str):
        raise InputError(f"{label} is {shortened(repr(text))} ({type(text).__name__}), not a text.")
    if not text.strip():
        raise InputError(f"{label} is empty ({text!r}): give a text, or take the row out.")
    if _SURROGATE.search(text):
        raise InputError(f"{label} {text!r} has half a surrogate pair: save the file as UTF-8.")
    return text


def shortened(text: str, length: int = 60) -> str:
    """Return the beginning of a text, for messages."""
    return text if len(text) <= length else text[:length] + "..."


def end_of_sequence(tokenizer: PreTrainedTokenizerBase, style: str) -> int:
    """Return the tokenizer's end-of-sequence id, or raise an `InputError`."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"Prompt style {style}: the tokenizer has no end-of-sequence token; set tokenizer.eos_token.")
    return int(tokenizer.eos_token_id)


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Find the ids that the tokenizer puts before a text: BOS, or nothing (an EOS that it appends is ignored)."""
    bare = encode(tokenizer, "a")
    whole = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def _anchor(tokenizer: PreTrainedTokenizerBase) -> str:
    """A line break if the tokenizer puts a space before a first word (sentencepiece), else nothing.

    Such a tokenizer reads ``The`` as ``▁The``: after ``[/INST]`` this would be a space that nobody wrote.
    """
    apart = encode(tokenizer, "\n") + encode(tokenizer, "a")
    return "" if apart == encode(tokenizer, "\na") else "\n"
