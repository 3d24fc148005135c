"""Writing a result so that a reader finds all of it or nothing."""

import json
import math
import os
from pathlib import Path
from typing import Any

from dipo_lightning.errors import RunError


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` to ``path`` in one step: under another name, to the disk, then renamed.

    Numbers that aren't finite become null: ``NaN`` is no JSON, and most readers refuse it.

    Raises:
        RunError: The file can't be written (a full disk, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(finite(document), file, ensure_ascii=False, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"The evaluation could not be written to {path}: {error.strerror or error}.") from error


def finite(value: Any) -> Any:
    """Return plain values with null for every number that isn't finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
