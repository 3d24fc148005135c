"""Paths given by the user: ``~`` and variables are expanded, the same way everywhere."""

import os
from pathlib import Path

from dipo_lightning.errors import InputError

MODEL_CONFIGS = ("config.json", "adapter_config.json")
"""Files one of which every folder of a model has."""


def with_home(path: str | Path) -> Path:
    """Return a path with ``~`` filled in; a name after ``~`` that is no user's stays, since files may be called so."""
    return Path(os.path.expanduser(path))  # pathlib's own raises a RuntimeError for such a name


def expanded(path: str, option: str) -> Path:
    """Return a path with ``~`` and ``$VARIABLES`` filled in.

    Args:
        path: The path as given.
        option: The user's option, for the message.

    Raises:
        InputError: It names a variable that is not set.
    """
    found = with_home(os.path.expandvars(path))
    if "$" in str(found):
        raise InputError(f"{option} is {path}, which names a variable that is not set.")
    return found


def is_model(path: str | Path) -> bool:
    """Return whether a path is the folder of a model, with its weights as safetensors, or a GGUF file."""
    place = with_home(path)
    described = any((place / name).is_file() for name in MODEL_CONFIGS)
    weights = described and next(place.glob("*.safetensors"), None) is not None
    return weights or (place.suffix.lower() == ".gguf" and place.is_file())


def refuse_model_folder(folder: Path, option: str) -> None:
    """Refuse to write results, which hold forget data, into the folder of a model or below it.

    Args:
        folder: The folder, which may not exist yet.
        option: The user's option, for the message.

    Raises:
        InputError: The folder is a model's, or lies in one.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        if is_model(place):
            raise InputError(
                f"{option} is {folder}, but {place} is the folder of a model, which should hold no forget "
                "data. Give another folder."
            )


def read_text(path: str, option: str) -> str:
    """Return the text of a file; arguments as for `expanded`.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        return expanded(path, option).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option}: {path} cannot be read as UTF-8 text: {reason}.") from error
