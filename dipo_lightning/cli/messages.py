"""What a parser has to say about a wrong option, in a sentence, with the nearest right one."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from dipo_lightning.errors import RENAMED
from dipo_lightning.safety.text import printable

NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes: ",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value type: ",
    "Given value: ",
)
"""Lines of the parser's report on a value that may be of several types, which say nothing to a user."""


class Sentences:
    """Makes a parser say in a sentence what is wrong, with the nearest right option where one is not known."""

    prog: str
    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and leave with code 2."""
        if not self.exit_on_error:  # inside the parse of a larger one, which will say it
            super().error(message, ex)  # type: ignore[misc]
        command = self.prog.replace(" [options]", "")
        print(f"error: {printable(explained(message, self))}\n{command} --help explains the options", file=sys.stderr)
        sys.exit(2)


def explained(message: str, parser: Any) -> str:
    """Return ``message`` without the parser's report on types, and with the nearest right option.

    Args:
        message: What jsonargparse says.
        parser: The parser, for the options that there are.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [
        line for line in lines if line and not any(("- " + line).startswith(n) or line.startswith(n) for n in NOISE)
    ]
    return " ".join(kept) + suggestion(message, parser)


def suggestion(message: str, parser: Any) -> str:
    """Return a hint at the nearest right option for a message about an unknown one, or nothing."""
    found = re.search(r"Option '([\w.]+)' is not accepted|nrecognized arguments: --([\w.]+)", message)
    if found is None:
        return ""
    unknown = next(group for group in found.groups() if group).split(".")[-1]
    if unknown in RENAMED:
        return f". It is {RENAMED[unknown]} now"
    named = re.search(r"class_path '([\w.]+)'", message)
    known = set(init_options(named.group(1))) if named else {action.dest.split(".")[-1] for action in parser._actions}
    near = difflib.get_close_matches(unknown, sorted(known), n=1)
    return f". Did you mean {near[0]!r}?" if near else f". There is: {', '.join(sorted(known))}"


def init_options(class_path: str) -> Iterable[str]:
    """Return the names of a class's options, those of its bases included."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    for base in cls.__mro__:
        if "__init__" in vars(base):
            for option, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
                if option != "self" and parameter.kind is not parameter.VAR_KEYWORD:
                    yield option
