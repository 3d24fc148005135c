"""Redaction of access tokens and of the user's folders, which must not leave the machine with a model or a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import yaml

REMOVED = "(removed)"

_SECRET_WORD = re.compile(
    r"(^|_)(secrets?|passwords?|passwd|pwd|passphrase|credentials?|bearer|authorization|dsn)(_|$)"
    r"|(^|_)(auth|cookie|connection_string)$"
    r"|(api|access|private|secret|ssh|account|storage|subscription|encryption|signing|service|license|auth|master|deploy)"
    r"_?keys?(_id)?$"
)
_TOKEN = re.compile(r"(?:^|([a-z0-9]+)_)tokens?$")
_ORDINARY_TOKENS = frozenset({
    "pad", "bos", "eos", "unk", "sep", "cls", "mask", "image", "audio", "video", "boi", "eoi", "start", "end", "stop",
    "think", "special", "new", "max", "min", "next", "first", "last", "forced", "prompt", "answer", "response", "extra",
    "suppress", "verbmem", "knowmem", "num", "ignore", "turn", "forget", "retain", "skip", "text", "batch",
})  # fmt: skip
_RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_+/=.-]{16,}")
"""Pattern of a random value: long, with letters and digits."""
_NO_TOKEN = re.compile(r"[-+.\d_eE]*|null|none|true|false|<.*>|\[.*\]|\W*", re.I)
_SECRET_VALUE = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bsk-[\w-]{20,}|\bxox[abeprs]-[\w-]{10,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}"
    r"|\b(?:nvapi-|gsk_|xai-|pypi-|npm_|r8_|dckr_pat_|glsa_|dop_v1_)[\w-]{20,}|\b[srp]k_(?:live|test)_\w{10,}|\bSG\.[\w-]{16,}"
    r"|(?<=hooks\.slack\.com/services/)[\w/]+|(?<=/api/webhooks/)[\w/-]+|(?<=Basic )(?=[\w+/]*[\d=])[\w+/=]{8,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|(?<=Bearer )[\w.~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?<=://)[^/\s:@]{16,}(?=@)",
    re.S,
)
_SECRET_IN_TEXT = re.compile(
    r"((?:api|access|account|secret|private)[ _-]?key|secret|token|passw(?:or)?d|passphrase|sig|signature)"
    r"(\s+is\s+|[\"']?\s*[:=]\s*[\"']?)(?=[^\s\"',;&]*\d)[^\s\"',;&]{6,}",
    re.I,
)
_WHOLE_PATH = re.compile(r"(~|[A-Za-z]:)?[/\\]")
_LOCAL_PATH = re.compile(r"(?<![\w.:/])(~|[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])*([^/\\\s'\"]+)[/\\]?")


def without_secrets(value: Any, name: str = "") -> Any:
    """Return plain values without anything that looks like a secret by its name or its form.

    All options of a run pass through here before they are written: ``config.yaml``, TensorBoard, evaluations, pages,
    cards, the run's record.

    Args:
        value: Strings, numbers, lists and mappings.
        name: The name of the value.
    """
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, name) for item in value]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if _is_secret(name, value):
        return REMOVED
    if isinstance(value, str):
        return _SECRET_IN_TEXT.sub(rf"\1\2{REMOVED}", _SECRET_VALUE.sub(REMOVED, value))
    return value


def without_secrets_in_yaml(text: str) -> str:
    """Return a configuration's text unchanged, or, if it holds secrets, rewritten without them."""
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:  # broken: line by line
        parts = [line.partition(": ") for line in text.splitlines()]
        return "\n".join(f"{name}{colon}{without_secrets(value, name.strip(' -'))}" for name, colon, value in parts)
    clean = without_secrets(options)
    return text if clean == options else yaml.safe_dump(clean, sort_keys=False, allow_unicode=True)


def _is_secret(name: str, value: Any) -> bool:
    """Return whether the value called ``name`` is a secret because of its name, whatever its form."""
    words = re.sub(r"[-. ]", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()
    if _SECRET_WORD.search(words):
        return isinstance(value, str | int | float)
    if words.endswith("_key") and isinstance(value, str) and _RANDOM.fullmatch(value):
        return True
    token = _TOKEN.search(words)
    if token is None or token[1] in _ORDINARY_TOKENS or not isinstance(value, str):
        return False
    return _NO_TOKEN.fullmatch(value) is None


def without_home(value: Any) -> Any:
    """Return plain values with the path of the user's home, which contains the user's name, written as ``~``."""
    if isinstance(value, Mapping | list | tuple):
        return _inside(value, without_home)
    home = str(Path.home())
    if not isinstance(value, str) or len(home) < 2:
        return value
    return re.sub(rf"(?<![\w.~-]){re.escape(home)}(?=[/\\]|$)", "~", value)


def without_paths(value: Any) -> Any:
    """Return plain values with absolute paths shortened to the last name in them."""
    if isinstance(value, Mapping | list | tuple):
        return _inside(value, without_paths)
    if isinstance(value, PurePath):
        value = str(value)
    if not isinstance(value, str):
        return value
    if _WHOLE_PATH.match(value) and "\n" not in value:  # its folders may have spaces in their names
        return PureWindowsPath(value).name or value
    return _LOCAL_PATH.sub(lambda match: match[2], value)


def _inside(value: Any, clean: Callable[[Any], Any]) -> Any:
    """The values of a mapping or a list, cleaned."""
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    return [clean(item) for item in value]
