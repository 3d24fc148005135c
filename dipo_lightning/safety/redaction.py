"""What must not leave a machine with a model or a page: access tokens, and whose folders the files lay in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

REMOVED = "(removed)"
_SECRET_NAME = re.compile(r"(^|_)(token|tokens|secret|password|passwd|credentials?|auth|api_?key|access_?key)$", re.I)
_SECRET_VALUE = re.compile(
    r"\b(hf|api_org)_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|://[^/\s:@]+:[^/\s@]+@"
)
_WHOLE_PATH = re.compile(r"(~|[A-Za-z]:)?[/\\]")
_LOCAL_PATH = re.compile(r"(?<![\w.:/])(~|[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])*([^/\\\s'\"]+)[/\\]?")


def without_secrets(value: Any, name: str = "") -> Any:
    """Return plain values with what looks like a secret taken out, by its name or by its form.

    Args:
        value: Strings, numbers, lists and mappings.
        name: The name the value stands under.
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if isinstance(value, str):
        return REMOVED if value and _SECRET_NAME.search(name) else _SECRET_VALUE.sub(REMOVED, value)
    return value


def without_home(value: Any) -> Any:
    """Return plain values with the path of the user's home, which has the user's name in it, written as ``~``."""
    if isinstance(value, Mapping):
        return {key: without_home(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_home(item) for item in value]
    home = str(Path.home())
    if not isinstance(value, str) or len(home) < 2:
        return value
    return re.sub(rf"(?<![\w.~-]){re.escape(home)}(?=[/\\]|$)", "~", value)


def without_paths(value: Any) -> Any:
    """Return plain values with absolute paths shortened to the last name in them."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, PurePath):
        value = str(value)
    if not isinstance(value, str):
        return value
    if _WHOLE_PATH.match(value) and "\n" not in value:  # its folders may have spaces in their names
        return PureWindowsPath(value).name or value
    return _LOCAL_PATH.sub(lambda match: match[2], value)
