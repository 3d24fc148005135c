"""Prompt styles by name: the fixed ones of the benchmarks, running text, and the tokenizer's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dipo_lightning.data.chat import ChatStyle
from dipo_lightning.data.encoding import PromptStyle, checked, continuation, end_of_sequence, suggestion
from dipo_lightning.errors import InputError
from dipo_lightning.models.token_batch import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PromptName = Literal["chat", "plain", "llama2", "text", "open_unlearning"]
"""Names of the prompt styles."""

OPEN_UNLEARNING = {"system_prompt": "You are a helpful assistant.", "date": "10 Apr 2025"}
"""Options of ``chat`` with which open-unlearning writes prompts for chat models, under the name ``open_unlearning``."""


class PlainStyle(PromptStyle):
    r"""``Question: {q}\nAnswer: `` and the answer; the style of base models in TOFU.

    Args:
        tokenizer: The model's tokenizer.
        space: Where the space after ``Answer:`` stands. ``"prompt"`` as the benchmark writes it; ``"answer"``
            makes it the first character of the answer, which is what a byte-level BPE saw in pre-training.
    """

    name = "plain"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, space: str = "prompt") -> None:
        if space not in ("prompt", "answer"):
            raise InputError(f"Prompt style plain: space is {space!r}; it is 'prompt' or 'answer'.")
        super().__init__(tokenizer)
        self.space = space
        self.stop_ids = [end_of_sequence(tokenizer, self.name)]

    @property
    def options(self) -> dict[str, Any]:
        """``space``."""
        return {"space": self.space}

    def prompt(self, question: str) -> list[int]:
        r"""BOS and ``Question: {q}\nAnswer: ``; see `PromptStyle.prompt`."""
        border = " " if self.space == "prompt" else ""
        return self._opening(f"Question: {checked(question, 'question')}\nAnswer:{border}")

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of the answer, behind a space with ``space="answer"``."""
        border = "" if self.space == "prompt" else " "
        return super().answer_ids(border + checked(answer, "answer"))


class Llama2Style(PromptStyle):
    """``[INST] {q} [/INST]`` and the answer straight behind it: TOFU's style for Llama-2-chat."""

    name = "llama2"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self.stop_ids = [end_of_sequence(tokenizer, self.name)]

    def prompt(self, question: str) -> list[int]:
        """BOS and ``[INST] {q} [/INST]``; see `PromptStyle.prompt`."""
        return self._opening(f"[INST] {checked(question, 'question')} [/INST]")


class TextStyle(PromptStyle):
    """No prompt: every token that has one before it is supervised.

    A question is a piece of text that comes first and is not supervised (a passage to continue); it may be empty.

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
        """``end``."""
        return {"end": self.end}

    def prompt(self, question: str = "") -> list[int]:
        """BOS and the text as it is; BOS alone (or nothing) for an empty text."""
        return self._opening(checked(question, "text")) if question else list(self._start)

    def join(self, prompt: list[int], answer: str) -> tuple[list[int], list[int]]:
        """See `PromptStyle.join`; the very first id has no position that could predict it."""
        checked(answer, "text")
        first = max(1, len(prompt))
        opening = len(prompt) <= len(self._start)
        ids = self._opening(answer) if opening else prompt + continuation(self.tokenizer, answer, self._anchor)
        ids = ids + self.stop_ids[:1] if self.end else ids
        return ids, [IGNORED] * first + ids[first:]


def prompt_style(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PromptStyle:
    """Return the prompt style of that name.

    Args:
        name: ``plain``, ``llama2``, ``chat``, ``text``, or ``open_unlearning``: ``chat`` with `OPEN_UNLEARNING`'s
            options.
        tokenizer: The model's tokenizer.
        options: The style's own options: ``space`` (plain), ``end`` (text), or ``system_prompt``, ``date``,
            ``chat_template`` and ``template_options`` (chat).

    Raises:
        InputError: No style or option has that name, or the tokenizer cannot serve the style.
    """
    if name == "open_unlearning":
        name, options = ChatStyle.name, OPEN_UNLEARNING | options
    styles = {style.name: style for style in (PlainStyle, Llama2Style, ChatStyle, TextStyle)}
    if name not in styles:
        raise InputError(f"There is no prompt style {name!r}{suggestion(name, [*styles, 'open_unlearning'])}.")
    known = list(styles[name].__init__.__annotations__)
    known = [option for option in known if option not in ("tokenizer", "return")]
    for option in options:
        if option not in known:
            hint = suggestion(option, known) if known else "; it has none"
            raise InputError(f"Prompt style {name} has no option {option!r}{hint}.")
    return styles[name](tokenizer, **options)
