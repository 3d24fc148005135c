"""Paths given by the user: ``~`` and variables are expanded, the same way everywhere."""

import os
from pathlib import Path

from dipo_lightning.errors import InputError


def expanded(path: str, option: str) -> Path:
    """Return a path with ``~`` and ``$VARIABLES`` filled in.

    Args:
        path: The path as given.
        option: The user's option, for the message.

    Raises:
        InputError: It names a variable that is not set.
    """
    found = os.path.expanduser(os.path.expandvars(path))
    if "$" in found:
        raise InputError(f"{option} is {path}, which names a variable that is not set.")
    return Path(found)


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
