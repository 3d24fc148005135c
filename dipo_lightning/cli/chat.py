"""The command ``chat``: answers of the original and the unlearned model side by side in a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TextIO

from dipo_lightning.data.encoding import PromptStyle, checked_text
from dipo_lightning.data.prompts import ChatStyle, PromptName, prompt_style
from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.safety.display import printable

if TYPE_CHECKING:
    from torch import nn

NARROW = 72  # terminal width below which the answers are printed one below the other
HELP = "/new starts a new conversation, /quit (or end of input) ends."


def chat(
    original: str,
    unlearned: str,
    prompt: PromptName = "chat",
    max_new_tokens: int = 200,
    system_prompt: str | None = None,
) -> None:
    """Chat with the original and the unlearned model side by side; reads questions from the terminal, line by line.

    With ``--prompt chat`` each model keeps its own conversation, without the oldest questions once its context is full;
    otherwise every line is a question by itself.

    Args:
        original: Model before unlearning: hub name, folder or GGUF file.
        unlearned: Model after unlearning: hub name or folder.
        prompt: Prompt style used for unlearning.
        max_new_tokens: Maximum length of an answer in tokens.
        system_prompt: System message, for ``--prompt chat``.
    """
    check_numbers("", {"max_new_tokens": max_new_tokens})
    options = {} if system_prompt is None else {"system_prompt": system_prompt}
    speakers = [
        Speaker(title, source, prompt, max_new_tokens, options)
        for title, source in (("original", original), ("unlearned", unlearned))
    ]
    print(f"Ask both models. {HELP}")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    talk(speakers, sys.stdin, sys.stdout, shutil.get_terminal_size().columns)


class Speaker:
    """One model and its side of the conversation.

    Args:
        title: Its name in the output.
        source: Hub name, folder or GGUF file.
        prompt: Prompt style.
        max_new_tokens: Maximum length of an answer in tokens.
        options: Options of the prompt style.
    """

    def __init__(
        self, title: str, source: str, prompt: str, max_new_tokens: int, options: dict[str, Any] | None = None
    ) -> None:
        from dipo_lightning.models.loading import load_policy

        self.title, self.max_new_tokens = title, max_new_tokens
        self.style: PromptStyle = load_style(source, prompt, **(options or {}))
        self.policy: nn.Module = load_policy(source)
        self.turns: list[dict[str, str]] = []

    def answer(self, question: str) -> str:
        """Answer greedily, and add both turns to the conversation; control sequences are removed.

        If there would be no room for the answer, the oldest turns are left out, and a note at its end says so.

        Raises:
            InputError: The question is no text or too long, or the chat template refuses it.
        """
        from dipo_lightning.evaluation.generation import generate
        from dipo_lightning.models.inspection import context_length, position_limit

        checked_text(question, "The question")
        limit = position_limit(self.policy) or context_length(self.policy)
        turns, ids = self.turns, self._prompt(self.turns, question)
        while limit is not None and turns and len(ids) + min(self.max_new_tokens, limit // 2) > limit:
            turns = turns[2:]
            ids = self._prompt(turns, question)
        if limit is not None and len(ids) >= limit:
            raise InputError(f"The question has {len(ids)} tokens, and {self.title} reads {limit}; ask a shorter one.")
        [said] = generate(self.policy, [ids], max_new_tokens=self.max_new_tokens, stop_ids=self.style.stop_ids)
        text = self.style.text(said)
        left_out = (len(self.turns) - len(turns)) // 2
        if isinstance(self.style, ChatStyle):
            self.turns = [*turns, {"role": "user", "content": question}, {"role": "assistant", "content": text}]
        note = f"\n[The oldest questions ({left_out}) were left out: {limit} tokens are full.]" if left_out else ""
        return printable(text) + note

    def _prompt(self, turns: list[dict[str, str]], question: str) -> list[int]:
        if isinstance(self.style, ChatStyle):
            return self.style.conversation_prompt([*turns, {"role": "user", "content": question}])
        return self.style.prompt(question)


def load_style(source: str, prompt: str, **options: Any) -> PromptStyle:
    """Load a model's tokenizer in the prompt style of a command's ``--prompt``.

    Raises:
        InputError: The style needs a chat template, and the tokenizer has none.
    """
    from dipo_lightning.models.loading import load_tokenizer

    tokenizer = load_tokenizer(source)
    template = options.get("chat_template") or getattr(tokenizer, "chat_template", None)
    if prompt in ("chat", "open_unlearning") and not template:
        raise InputError(f"{source}: the tokenizer has no chat template (a base model?). Take --prompt plain.")
    return prompt_style(prompt, tokenizer, **options)


def talk(speakers: list[Speaker], lines: TextIO, output: TextIO, width: int) -> None:
    """Answer line after line until ``/quit`` or the end of the input."""
    for line in _questions(lines, output):
        if line in ("/quit", "/exit"):
            break
        if line == "/new":
            for speaker in speakers:
                speaker.turns.clear()
            print("A new conversation.", file=output)
        elif line.startswith("/"):
            print(f"There is no {printable(line)}. {HELP}", file=output)
        else:
            before = [speaker.turns for speaker in speakers]
            try:
                answers = [(speaker.title, speaker.answer(line)) for speaker in speakers]
            except InputError as error:  # about this question, not about the conversation
                print(f"error: {printable(str(error))}", file=output, flush=True)
                for speaker, turns in zip(speakers, before, strict=True):
                    speaker.turns = turns
            else:
                print(side_by_side(answers, width), file=output, flush=True)


def _questions(lines: TextIO, output: TextIO) -> Iterator[str]:
    """Yield the lines that are not empty, with a prompt for each."""
    while True:
        print("\n> ", end="", file=output, flush=True)
        line = lines.readline()
        if not line:
            print(file=output)
            return
        if line.strip():
            yield line.strip()


def side_by_side(answers: list[tuple[str, str]], width: int) -> str:
    """Format titled texts in columns, or one below the other if ``width`` is too narrow."""
    if width < NARROW:
        return "\n\n".join("\n".join([f"{title}:", *_wrapped(text, max(20, width))]) for title, text in answers)
    column = (width - 3 * (len(answers) - 1)) // len(answers)
    blocks = [[title, "-" * column, *_wrapped(text, column)] for title, text in answers]
    rows = zip_longest(*blocks, fillvalue="")
    return "\n".join(" | ".join(cell.ljust(column) for cell in row).rstrip() for row in rows)


def _wrapped(text: str, width: int) -> list[str]:
    return [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]]
