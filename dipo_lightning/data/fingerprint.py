"""A name for the exact rows that a model was made to forget or keep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

_PLACE = ("index", "where")  # where a row stands, not what it says


def data_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash what rows say, in their order; the same wherever the files lie and whatever format they have.

    Args:
        rows: From `dipo_lightning.data.files.read_rows`, or other plain dictionaries.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    digest = hashlib.sha256()
    for row in rows:
        content = {key: value for key, value in row.items() if key not in _PLACE}
        digest.update(json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def fingerprints(datamodule: object) -> dict[str, dict[str, Any]]:
    """Describe the rows of a data module of this package: ``{"forget": {"rows": n, "sha256": ...}, ...}``."""
    found = {}
    for half in ("forget", "retain", "train"):
        rows = getattr(datamodule, f"{half}_rows", None)
        if isinstance(rows, list) and rows and isinstance(rows[0], Mapping):
            found[half] = {"rows": len(rows), "sha256": data_fingerprint(rows)}
    return found
