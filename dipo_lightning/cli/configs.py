"""Configurations that come with the package, named by short names such as ``tofu/smollm2/unlearn``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

OPTIONS = ("--config", "-c")
MADE_BY = {"runs/muse-small": "dipo-lightning muse-small", "runs/quickstart": "dipo-lightning quickstart"}
"""Commands that make what shipped configurations start from, by their folder."""


def shipped_folder() -> Path:
    """Return the folder of the configurations, which is a link to ``configs/`` in a checkout."""
    return Path(str(files("dipo_lightning"))) / "configs"


def shipped_names() -> list[str]:
    """Return the short names of all shipped configurations."""
    folder = shipped_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str) -> str:
    """Return the path of a user's file, or else of a shipped configuration, such as ``trainer/fsdp2``.

    An unknown name comes back as it was given, for the parser to refuse.
    """
    if Path(name).exists():
        return name
    short = name.removeprefix("configs/").removesuffix(".yaml")
    return str(shipped_folder() / f"{short}.yaml") if short in shipped_names() else name


def with_shipped_configs(args: Sequence[str]) -> list[str]:
    """Return command-line arguments with the short names behind ``--config`` replaced by paths."""
    found, expected = [], False
    for argument in args:
        option, equals, value = argument.partition("=")
        if expected:
            found.append(find_config(argument))
        elif option in OPTIONS and equals:
            found.append(f"{option}={find_config(value)}")
        else:
            found.append(argument)
        expected = argument in OPTIONS
    return found


def maker_of(model: str) -> str | None:
    """Return the command that makes a model which a shipped configuration starts from; None where none does."""
    for folder, command in MADE_BY.items():
        if Path(model).is_relative_to(folder):
            return command
    exported = re.compile(rf"\bfolder: {re.escape(model)}\b")
    for name in shipped_names():
        if exported.search((shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8")):
            return f"dipo-lightning fit --config {name}"
    return None
