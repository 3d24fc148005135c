"""MkDocs hooks: formulas become MathML, which browsers draw without a script; tables of options come from the code."""

from __future__ import annotations

import ast
import html
import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

from dipo_lightning import public_classes

ROOT = Path(__file__).resolve().parents[1]
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_OPTIONS = re.compile(r"^\{\{ options (\w+) \}\}$", re.MULTILINE)
_COMMANDS = "{{ commands }}"
_METHODS = "{{ methods }}"
ALSO = {
    "PairOptions": "dipo_lightning.methods.dipo.pair",
    "LoRA": "dipo_lightning.models.lora",
    "Evaluation": "dipo_lightning.evaluation.callback",
    "Row": "dipo_lightning.evaluation.rows",
    "MUSERow": "dipo_lightning.benchmarks.muse.measuring",
    "Checkpoint": "dipo_lightning.callbacks.checkpoint",
    "RunLogger": "dipo_lightning.evaluation.tensorboard",
}
"""Modules of the documented classes that are no public names."""
APART = ("DiPOModule", "UnlearningModule", "LanguageModelModule")
"""Classes of the methods that the page of options describes by themselves."""
LONG = 45
"""Characters of LaTeX from which a formula in a line may be wider than a telephone."""


def on_page_content(content: str, **_: Any) -> str:
    """Replace each formula of a page by its MathML."""
    return _FORMULA.sub(_formula, content)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace ``{{ commands }}``, ``{{ methods }}`` and ``{{ options Class }}`` by tables of their options."""
    if _COMMANDS in markdown:
        every = "\n\n".join(command(*one) for one in table("cli.main", "COMMANDS").items())
        markdown = markdown.replace(_COMMANDS, every)
    if _METHODS in markdown:
        names = [name for name in sorted(methods(), key=str.lower) if name not in APART]
        markdown = markdown.replace(_METHODS, "\n\n".join(f"### {name}\n\n{class_options(name)}" for name in names))
    return _OPTIONS.sub(lambda match: class_options(match.group(1)), markdown)


def command(name: str, path: str) -> str:
    """Describe a command: its summary, its positional arguments and a table of its options."""
    function = resolve(path.replace(":", "."))
    required = [one.name for one in function.parameters if one.default is None]
    last = [f"[{option}]" for one, (_, option) in table("cli.main", "LAST_ARGUMENT").items() if one == name]
    usage = " ".join(["dipo-lightning", name, *(one.upper() for one in [*required, *last]), "[options]"])
    return f"## {name}\n\n```text\n{usage}\n```\n\n{text_of(function)}\n\n{option_table(function, prefix='--')}"


def class_options(name: str) -> str:
    """Describe a class that a configuration names: its summary and a table of its options."""
    cls = resolve((public_classes() | ALSO)[name] + f".{name}")
    return f"{text_of(cls)}\n\n{option_table(cls)}"


def option_table(member: Any, prefix: str = "") -> str:
    """Return a table of the options that a docstring explains, with their types and defaults."""
    rows = ["| option | meaning |", "|---|---|"]
    for section in sections_of(member):
        if section.kind.value in ("parameters", "attributes"):
            rows += [_row(member, one, prefix) for one in section.value]
    return "\n".join(rows) if len(rows) > 2 else ""


def _row(member: Any, option: Any, prefix: str) -> str:
    meaning = " ".join(_plain(option.description).split())
    if option.name.startswith("*"):
        return f"| `{option.name}` | {meaning} |"
    kind = "" if option.annotation is None else f"<br>`{option.annotation}`"
    return f"| `{prefix}{option.name}`{kind}{_default(member, option.name)} | {meaning} |"


def _default(member: Any, name: str) -> str:
    parameters = getattr(member, "parameters", None)
    known = parameters is not None and name in parameters
    value = parameters[name].default if known else getattr(member.members.get(name), "value", None)
    if value is None:
        return ""
    shown = str(constant(value))
    return "" if shown.isupper() or len(shown) > 40 else f"<br>default `{shown}`"


def constant(value: Any) -> Any:
    """Return the value of a constant of the package that a default names, or the default itself."""
    while isinstance(value, griffe.ExprName) and value.canonical_path.startswith("dipo_lightning."):
        value = getattr(resolve(value.canonical_path), "value", str(value))
    return value


def text_of(member: Any) -> str:
    """Return the text of a docstring without its sections."""
    return "\n\n".join(_plain(one.value) for one in sections_of(member) if one.kind.value == "text")


def sections_of(member: Any) -> list[Any]:
    """Return the parsed sections of a docstring."""
    return member.docstring.parse("google", warnings=False) if member.docstring else []


def _plain(text: str) -> str:
    """Turn reStructuredText's code marks into Markdown's."""
    return text.replace("``", "`")


def resolve(path: str) -> Any:
    """Return the class or function at a dotted path, read from the sources without importing them."""
    return package()[path.removeprefix("dipo_lightning.")]


def table(module: str, name: str) -> dict[str, Any]:
    """Return a dictionary of plain values that a module defines."""
    return ast.literal_eval(str(package()[module][name].value))


def methods() -> list[str]:
    """Return the names of the methods' classes."""
    return [name for name, module in public_classes().items() if module.startswith("dipo_lightning.methods.")]


@cache
def package() -> Any:
    """Return the parsed package."""
    return griffe.load("dipo_lightning", search_paths=[ROOT], allow_inspection=False)


def _formula(match: re.Match[str]) -> str:
    inline = match.group(1) == "span"
    mathml = convert(html.unescape(match.group(2)).strip(), display="inline" if inline else "block")
    if inline and len(match.group(2)) <= LONG:
        return mathml
    return f'<{match.group(1)} class="formula">{mathml}</{match.group(1)}>'  # scrolls where the page is narrow
