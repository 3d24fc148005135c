"""Prompt styles by name, among them the tokenizer's own chat template, rendered the same on every day."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dipo_lightning.data.encoding import (
    Llama2Style,
    PlainStyle,
    PromptStyle,
    TextStyle,
    checked_text,
    encode,
    shortened,
    suggestion,
)
from dipo_lightning.errors import InputError
from dipo_lightning.safety.paths import with_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptName = Literal["chat", "plain", "llama2", "text", "open_unlearning"]
"""Names of the prompt styles."""

OPEN_UNLEARNING = {"system_prompt": "You are a helpful assistant.", "date": "10 Apr 2025"}
"""Options of ``chat`` with which open-unlearning writes prompts for chat models, under the name ``open_unlearning``."""

Messages = list[dict[str, str]]
_MONTH_NAMES = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_MONTHS = tuple(name[:3] for name in _MONTH_NAMES)
_DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PROBE = "Xanadu"
_REASONING = re.compile(r"\s*<[^<>]*(think|reason)[^<>]*>\s*", re.IGNORECASE)
"""The beginning of a reasoning block, as a generation prompt opens one."""
NAMED_TEMPLATES = {
    "chatml": "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
}
"""Templates that are known by name, for a base model whose tokenizer has none."""


class ChatStyle(PromptStyle):
    """The tokenizer's chat template around a question, with an end-of-turn token after the answer.

    The template shows the text before and after an answer: it is rendered with a generation prompt, and again with an
    answer. Text between the generation prompt and the answer (such as an empty reasoning block) belongs to the prompt,
    unless it is only white space. A reasoning block that the generation prompt opens and the template leaves out of a
    given answer (DeepSeek-R1 and its distillations) is left out of the prompt. After the answer the first special token
    is kept and supervised, as the end of the turn; the rest (a line break, a second end token) is dropped, since a
    generation never reaches it.

    Args:
        tokenizer: The model's tokenizer.
        system_prompt: A system message; None leaves the template's own default, if it has one.
        date: The date that templates print (Llama-3 asks for today's), as ``26 Jul 2024``.
        chat_template: A template to use in place of the tokenizer's: its text, a file with it, or a name: ``chatml``,
            or one of several that the tokenizer has.
        template_options: Further variables of the template. ``enable_thinking`` is false unless it is given.
    """

    name = "chat"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str | None = None,
        date: str = "26 Jul 2024",
        chat_template: str | Path | None = None,
        template_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.template = _fixed_clock(_day(date)) + _template(tokenizer, chat_template)
        self.system_prompt = None if system_prompt is None else checked_text(system_prompt, "The system prompt")
        self.date = date
        if not _has_names(template_options or {}):
            raise InputError(
                f"template_options is {template_options!r}; give variables of the chat template by name, such as "
                "{enable_thinking: true}."
            )
        self.template_options = {"enable_thinking": False, **(template_options or {})}
        self._variables = {**self.template_options, "date_string": date}
        self._opened, self._lead, self._tail = self._surroundings()
        self.stop_ids = self._stops()

    @property
    def options(self) -> dict[str, Any]:
        """``system_prompt``, ``date`` and ``template_options``."""
        return {"system_prompt": self.system_prompt, "date": self.date, "template_options": self.template_options}

    def prompt(self, question: str) -> list[int]:
        """The template up to where the answer begins; see `PromptStyle.prompt`."""
        return self.conversation_prompt([{"role": "user", "content": checked_text(question, "The question")}])

    def join(self, prompt: list[int], answer: str) -> tuple[list[int], list[int]]:
        """See `PromptStyle.join`; the answer is what the template makes of it (most trim it)."""
        turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": answer}]
        return super().join(prompt, self._shown(turns))

    def conversation_prompt(self, messages: Messages) -> list[int]:
        """Ids to generate the next assistant turn from.

        Args:
            messages: Turns with ``role`` and ``content``, the last one the user's.
        """
        return encode(self.tokenizer, self._prompt_text(messages))

    def conversation(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Ids and labels of a conversation, its last turn supervised.

        Args:
            messages: Turns with ``role`` and ``content``, the last one the assistant's.

        Raises:
            InputError: The last turn is not the assistant's, or the template refuses the conversation.
        """
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise InputError("A conversation must end with a turn of the assistant, the one to learn or forget.")
        return super().join(self.conversation_prompt(messages[:-1]), self._shown(messages))

    def _shown(self, messages: Messages) -> str:
        """The last turn as the template writes it, without the text around it."""
        answer = checked_text(messages[-1]["content"], "The answer")
        text, whole = self._prompt_text(messages[:-1]), self._render(messages)
        if not whole.startswith(text) or not whole.endswith(self._tail):
            answer = shortened(answer)
            raise InputError(f"The chat template changes the answer {answer!r}: give another with chat_template.")
        return whole[len(text) :].removesuffix(self._tail)

    def _prompt_text(self, messages: Messages) -> str:
        return self._render(messages, generation=True).removesuffix(self._opened) + self._lead

    def _render(self, messages: Messages, generation: bool = False) -> str:
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        try:
            # Rendered here and tokenised by `encode`: with tokenize=True this call returns a dictionary, not ids.
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=generation,
                **self._variables,
            )
        except Exception as error:  # of any kind: a template computes
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(f"The chat template refuses a conversation of {roles}: {error}.") from error
        return str(text)

    def _surroundings(self) -> tuple[str, str, str]:
        """Find the reasoning block that only a generation prompt opens, and the text before and after an answer."""
        turns = [{"role": "user", "content": "Who?"}]
        before = self._render(turns, generation=True)
        whole = self._render([*turns, {"role": "assistant", "content": _PROBE}])
        shown = whole.partition(_PROBE)[0]
        opened = before[len(shown) :] if before.startswith(shown) and _REASONING.fullmatch(before[len(shown) :]) else ""
        before = before.removesuffix(opened)
        if not whole.startswith(before) or _PROBE not in whole[len(before) :]:
            raise InputError(
                "The prompt that the chat template writes for an answer is not the beginning of a turn with that "
                "answer: give another template with chat_template."
            )
        lead, _, tail = whole[len(before) :].partition(_PROBE)
        return opened, (lead if lead.strip() else ""), tail

    def _stops(self) -> list[int]:
        """The end-of-turn token of the template, then the end-of-sequence token if it is a different one."""
        # Some tokenizers add runs of line breaks and spaces as special tokens, which do not end a turn.
        added = self.tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.content.strip()} | set(self.tokenizer.all_special_ids)
        turn = [token for token in encode(self.tokenizer, self._tail) if token in special][:1]
        sequence = self.tokenizer.eos_token_id
        stops = turn + ([] if sequence is None or sequence in turn else [int(sequence)])
        if not stops:
            raise InputError(
                "Nothing ends a turn: the chat template closes it with no special token and the tokenizer has no "
                "end-of-sequence token; set tokenizer.eos_token."
            )
        return stops


def _has_names(options: object) -> bool:
    """Return whether options are given by name."""
    return isinstance(options, dict) and all(isinstance(name, str) for name in options)


def _template(tokenizer: PreTrainedTokenizerBase, given: str | Path | None) -> str:
    """The template's text, from the option or the tokenizer."""
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if given is None:
        if not tokenizer.chat_template:
            raise InputError(
                "Prompt styles chat and open_unlearning: the tokenizer has no chat template (a base model?). Take "
                "data.prompt: plain, or name a template in data.prompt_options.chat_template."
            )
        if own and "default" not in own:
            raise InputError(
                f"The tokenizer has several chat templates, {', '.join(own)}, and none is called default; name one in "
                "data.prompt_options.chat_template."
            )
        return str(tokenizer.get_chat_template())
    if not isinstance(given, str | Path):
        raise InputError(f"chat_template is {given!r}; give a template, a file, or the name of one.")
    if isinstance(given, str) and "{" in given:
        return given
    if str(given) in (named := NAMED_TEMPLATES | own):
        return str(named[str(given)])
    try:
        return with_home(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no text in UTF-8, or a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"chat_template {str(given)!r} is neither a template nor a file ({reason}), nor the name of one: "
            f"{', '.join(named)}."
        ) from error


def _day(date: str) -> datetime.date:
    """The day written as ``26 Jul 2024`` (in English whatever the locale)."""
    parts = date.split() if isinstance(date, str) else []
    if len(parts) == 3 and parts[1] in _MONTHS and parts[0].isdecimal() and parts[2].isdecimal():
        try:
            return datetime.date(int(parts[2]), _MONTHS.index(parts[1]) + 1, int(parts[0]))
        except ValueError as error:
            raise InputError(f"The date {date!r} does not exist: {error}.") from error
    raise InputError(f"The date {date!r} is not written like '26 Jul 2024'.")


def _fixed_clock(day: datetime.date) -> str:
    """First lines of a template that replace transformers' ``strftime_now`` by one of a fixed day (at midnight).

    It must be a macro: transformers turns functions among a template's variables into strings.
    """
    english = {"b": _MONTHS[day.month - 1], "B": _MONTH_NAMES[day.month - 1], "a": _DAY_NAMES[day.weekday()][:3]}
    english |= {"A": _DAY_NAMES[day.weekday()], "-d": str(day.day), "-m": str(day.month), "p": "AM"}
    numbers = {letter: day.strftime(f"%{letter}") for letter in "dmyYjHIMS"}
    filters = "".join(f" | replace('%{letter}', '{text}')" for letter, text in (english | numbers).items())
    # The empty expression keeps a line break at the template's start from being trimmed with the block.
    return "{%- macro strftime_now(form) -%}{{ form" + filters + " }}{%- endmacro -%}{{ '' }}"


def prompt_style(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PromptStyle:
    """Return the prompt style of that name, with its own options (see `PlainStyle`, `TextStyle`, `ChatStyle`).

    ``open_unlearning`` is ``chat`` with `OPEN_UNLEARNING`'s options.

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
