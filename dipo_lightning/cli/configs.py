"""Configurations shipped with the package.

Those of ``configs/`` have short names such as ``tofu/smollm2/unlearn``; commands that make their own runs fill in
templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.errors import InputError

OPTIONS = ("--config", "-c")
MADE_BY = {
    "runs/muse-small": "`dipo-lightning muse-small`",
    "runs/quickstart": "`dipo-lightning quickstart`",
    "models/smollm2": "`make smollm2` in a clone, or start from HuggingFaceTB/SmolLM2-135M-Instruct instead",
}
"""Commands that make the input folders of shipped configurations, unless another configuration makes them."""


def shipped_folder() -> Path:
    """Return the folder of the configurations; in a checkout it is a link to ``configs/``."""
    return Path(str(files("dipo_lightning"))) / "configs"


def shipped_names() -> list[str]:
    """Return the short names of all shipped configurations."""
    folder = shipped_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str) -> str:
    """Return the path of a user's file, or else of a shipped configuration such as ``trainer/fsdp2``.

    An unknown name is returned unchanged, for the parser to refuse.
    """
    if Path(name).exists():
        return name
    short = name.removeprefix("configs/").removesuffix(".yaml")
    return str(shipped_folder() / f"{short}.yaml") if short in shipped_names() else name


def with_shipped_configs(args: Sequence[str]) -> list[str]:
    """Replace the short names after ``--config`` in command-line arguments by paths."""
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


def read_template(name: str) -> dict[str, Any]:
    """Return the template of a command's run, such as ``cli/forget``, with its placeholders."""
    return yaml.safe_load((files("dipo_lightning") / f"{name}.yaml").read_text(encoding="utf-8"))


def filled(template: str, /, **values: Any) -> dict[str, Any]:
    """Return the template of a command's run with its ``{placeholders}`` filled in.

    A text that consists of a single placeholder becomes the value itself.
    """

    def fill(part: Any) -> Any:
        """Return a part of the configuration with its placeholders filled in."""
        if isinstance(part, dict):
            return {key: fill(item) for key, item in part.items()}
        if isinstance(part, list):
            return [fill(item) for item in part]
        if not isinstance(part, str):
            return part
        whole = re.fullmatch(r"\{(\w+)\}", part)
        return values[whole[1]] if whole else part.format(**values)

    return fill(read_template(template))


def check_made(paths: Iterable[Any]) -> None:
    """Refuse missing inputs that a known command makes, and name the commands.

    Args:
        paths: Values of options such as the model's folder or the retain log; values other than texts are ignored.

    Raises:
        InputError: A path does not exist, and `maker_of` knows how to make it.
    """
    missing = [path for path in paths if isinstance(path, str) and not Path(path).exists()]
    makers = {path: maker for path in missing if (maker := maker_of(path))}
    if makers:
        commands = "; then ".join(dict.fromkeys(makers.values()))
        names, it = " or ".join(map(repr, makers)), "it" if len(makers) == 1 else "them"
        raise InputError(f"There is no {names} to start from. To make {it}: {commands}.")


def maker_of(path: str) -> str | None:
    """Return the command that makes an input of a shipped configuration; None if there is none."""
    for folder, command in MADE_BY.items():
        if Path(path).is_relative_to(folder):
            return command
    if Path(path).parent == Path():  # a configuration's own name for a folder inside its run
        return None
    parent, name = (re.escape(part) for part in (Path(path).parent.as_posix(), Path(path).name))
    written = re.compile(rf"\bfolder: {re.escape(path)}\b|\bsave_dir: {parent}, name: {name}\b")
    for config in shipped_names():
        if written.search((shipped_folder() / f"{config}.yaml").read_text(encoding="utf-8")):
            return f"`dipo-lightning fit --config {config}`"
    return None
