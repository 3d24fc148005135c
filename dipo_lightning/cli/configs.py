"""Configurations that come with the package, named by short names such as ``tofu/smollm2/unlearn``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError

OPTIONS = ("--config", "-c")
MADE_BY = {
    "runs/muse-small": "`dipo-lightning muse-small`",
    "runs/quickstart": "`dipo-lightning quickstart`",
    "models/smollm2": "`make smollm2` in a clone, or start from HuggingFaceTB/SmolLM2-135M-Instruct instead",
}
"""What makes the folders that shipped configurations start from, where no other configuration does."""


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


def check_made(paths: Iterable[Any]) -> None:
    """Refuse to start where what shipped configurations make was not made, and name all the commands that make it.

    Args:
        paths: A model's folder, a retain log and the like, as options give them; what is no text is passed over.

    Raises:
        InputError: Something is not there, and `maker_of` knows how to make it.
    """
    missing = [path for path in paths if isinstance(path, str) and not Path(path).exists()]
    makers = {path: maker for path in missing if (maker := maker_of(path))}
    if makers:
        commands = "; then ".join(dict.fromkeys(makers.values()))
        raise InputError(f"There is no {' and no '.join(map(repr, makers))} to start from. To make it: {commands}.")


def maker_of(path: str) -> str | None:
    """Return how to make a model or a run that a shipped configuration starts from; None where that is not known."""
    for folder, command in MADE_BY.items():
        if Path(path).is_relative_to(folder):
            return command
    parent, name = (re.escape(part) for part in (Path(path).parent.as_posix(), Path(path).name))
    written = re.compile(rf"\bfolder: {re.escape(path)}\b|\bsave_dir: {parent}, name: {name}\b")
    for config in shipped_names():
        if written.search((shipped_folder() / f"{config}.yaml").read_text(encoding="utf-8")):
            return f"`dipo-lightning fit --config {config}`"
    return None
