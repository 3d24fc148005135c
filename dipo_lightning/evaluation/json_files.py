"""Result files that a reader finds whole or not at all."""

import json
import math
import os
from pathlib import Path
from typing import Any

from dipo_lightning.errors import RunError


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step: under another name, to the disk, then renamed.

    Raises:
        RunError: The file can't be written (a full disk, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path} could not be written: {error.strerror or error}.") from error


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` to ``path`` in one step, as `write_text` does.

    Numbers that aren't finite become null: ``NaN`` is no JSON, and most readers refuse it.

    Raises:
        RunError: The file can't be written (a full disk, no permission).
    """
    write_text(path, json.dumps(finite(document), ensure_ascii=False, indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """Return plain values with null for every number that isn't finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
