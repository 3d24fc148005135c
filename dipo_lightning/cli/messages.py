"""Error messages about options, with a suggestion for unknown ones, and warnings: one sentence each."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from dipo_lightning.errors import RENAMED
from dipo_lightning.safety.display import printable

NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes: ",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value type: ",
    "Given value: ",
    "Not a valid subclass of ",
    "Subclass types expect one of",
    "a class path (str)",
    "a dict with ",
    "a dict without ",
)
"""Lines of the parser's report on a value of several possible types that do not help a user."""


USUAL = {
    **dict.fromkeys(("lr", "learning_rate"), ("lr", "model.optimizer=AdamW --model.optimizer.lr")),
    "weight_decay": ("model.optimizer=AdamW --model.optimizer.weight_decay",),
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs", "num_train_epochs"), ("epochs", "trainer.max_epochs")),
    **dict.fromkeys(("output", "output_dir", "run"), ("output", "run")),
    "model_name_or_path": ("model.pretrained",),
}
"""Options of this package by their usual names in other programs, and by those of its other commands."""

RENAMED_IN = {"dipo-lightning score": {"reference": "--retain_log"}}
"""Options renamed in a single command, in the form of `RENAMED`; in other commands the old name is still in use."""

INSIDE = {
    "model": "dipo_lightning.DiPOModule",
    "data": "dipo_lightning.UnlearningDataModule",
    "trainer": "lightning.pytorch.Trainer",
}
"""Classes of the sections, for options that are given without a section."""


class Sentences:
    """Mix-in for parsers, whose errors become one sentence with a suggestion for unknown options."""

    prog: str
    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and exit with code 2."""
        if not self.exit_on_error:  # called by a larger parser, which will report the error
            super().error(message, ex)  # type: ignore[misc]
        command = self.prog.replace(" [options]", "")
        print(f"error: {printable(explained(message, self))}\n{command} --help explains the options", file=sys.stderr)
        sys.exit(2)


_NO_NUMBER = re.compile(
    r"""Parser key "([\w.]+)":(?:(?!Parser key).)*"""
    r"""Expected a <class 'float'>\s*- Expected a dot import path string: (\S+)""",
    re.DOTALL,
)
"""The parser's report on a text for a number or a tensor, as the learning rates of optimisers may be."""


def explained(message: str, parser: Any) -> str:
    """Return ``message`` without the parser's report on types, and with a suggestion for an unknown option."""
    if number := _NO_NUMBER.search(message):
        return f"{number[1]} must be a number, got {number[2]!r}."
    no_class = re.search(r'"([\w.]+)".*?(?:Expected a path but|mport path string:) ([\w.]+)', message, re.S)
    if no_class and (missing := re.search(r"No module named '[^']+'", message)):
        return f"{no_class[1]}: {no_class[2]} cannot be imported ({missing[0]}); is it in this folder or on PYTHONPATH?"
    if no_class:
        return unknown_class(no_class[1], no_class[2])
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [
        line for line in lines if line and not any(("- " + line).startswith(n) or line.startswith(n) for n in NOISE)
    ]
    return " ".join(kept) + suggestion(message, parser)


def unknown_class(option: str, name: str) -> str:
    """Return a message about an unknown class, with the nearest class of this package or Lightning's callbacks."""
    import lightning.pytorch.callbacks

    import dipo_lightning

    given, name = name, name.rpartition(".")[2]
    ends = {"model": "Module", "data": "DataModule"}.get(option.split(".")[-1], "")
    known = [one for one in dipo_lightning.__all__ if one[0].isupper() and one.endswith(ends) and "Error" not in one]
    if option == "model":
        known = [one for one in known if not one.endswith("DataModule")]
    if option == "trainer.callbacks":
        known = [one for one in known if not one.endswith(("Module", "Strategy"))]
        known += list(lightning.pytorch.callbacks.__all__)
    near = nearest_class(name, known, ends)
    hint = f"Did you mean {near!r}?" if near else f"There is: {', '.join(known)}; or give an import path."
    return f"{option}: there is no class {given!r}. {hint}"


def nearest_class(name: str, known: Iterable[str], ends: str) -> str | None:
    """Return the known class nearest to a name in any case, from which the ending ``ends`` may be missing."""
    lower = {one.lower(): one for one in known}
    tries = [(name + ends).lower(), name.lower()]
    exact = [one for one in tries if one in lower]
    near = exact or [one for word in reversed(tries) for one in difflib.get_close_matches(word, list(lower), n=1)]
    return lower[near[0]] if near else None


def suggestion(message: str, parser: Any) -> str:
    """Return a suggestion for a message about an unknown option; empty for other messages."""
    found = re.search(
        r"Option '([\w.]+)' is not accepted|nrecognized arguments: --([\w.-]+)|not accept option '([\w.]+)'", message
    )
    if found is None:
        return ""
    *section, unknown = next(group for group in found.groups() if group).replace("-", "_").split(".")
    options = {action.dest.split(".")[0] for action in parser._actions}
    sections = options & INSIDE.keys() if "trainer" in options else set()  # else they are options without parts
    for usual in USUAL.get(unknown, ()):
        if usual in options - {unknown} or usual.split(".")[0] in sections:
            return f". Did you mean '--{usual}'?"
    own = options - INSIDE.keys()
    renamed = {old: new for old, new in RENAMED.items() if sections or section or new.split(".")[0] in own}
    renamed |= RENAMED_IN.get(parser.prog, {})
    if unknown in renamed:
        return f". It is {renamed[unknown]} now"
    named = re.search(r"class_path '([\w.]+)'", message)
    if not named and (
        place := next((one for one in INSIDE if one in sections and unknown in init_options(INSIDE[one])), None)
    ):
        return f". Did you mean '--{place}.{unknown}'?"
    if of := named[1] if named else INSIDE.get(".".join(section)):
        known = init_options(of)
    else:
        known = {action.dest.split(".")[-1] for action in parser._actions}
    near = difflib.get_close_matches(unknown, sorted(known), n=1)
    return f". Did you mean {near[0]!r}?" if near else f". There is: {', '.join(sorted(known))}"


def init_options(class_path: str) -> set[str]:
    """Return the names of the options of the class at a dotted path."""
    module, _, name = class_path.rpartition(".")
    return set(parameters_of(getattr(importlib.import_module(module), name)))


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the options of a class by name, following ``**options`` up to its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = dict(inspect.signature(vars(base)["__init__"]).parameters)
        rest = [name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD]
        found = parameters | found  # a subclass's own default counts
        if not rest:
            break
        del found[rest[0]]
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: one for name, one in found.items() if name != "self" and one.kind not in several}


def warning_sentence(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> str:
    """Format a warning as one line; a deprecation in a library as nothing, since a user cannot act on it."""
    deprecated = issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning)
    return "" if deprecated else f"warning: {' '.join(str(message).split())}\n"
