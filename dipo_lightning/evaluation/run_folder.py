"""The run folder, with any logger or without one, and atomic writing of files in it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, finalize

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from dipo_lightning.errors import RunError


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: under another name, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be a file
            temporary.unlink(missing_ok=True)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` atomically, as `write_text` does; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(document), ensure_ascii=False, indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """Return plain values with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


PRIVATE = 0o700
"""Mode of a new run folder, since forget data is private by nature."""

SHARED = 0o777
"""Mode of a new run folder whose permissions are those of the umask."""

_folders: WeakKeyDictionary[pl.Trainer, Path] = WeakKeyDictionary()
_named: WeakSet[pl.Trainer] = WeakSet()
_shared: WeakSet[pl.Trainer] = WeakSet()


def run_folder(trainer: pl.Trainer) -> Path:
    """Return the run folder of ``trainer``; collective the first time.

    It is the versioned folder of the first logger if that has one (TensorBoard, CSV), or else a new ``run_N`` in
    ``default_root_dir``, so that no run writes to another's folder. A ``fast_dev_run`` gets a temporary folder.
    """
    if trainer not in _folders:
        chosen = _choose(trainer) if trainer.is_global_zero else Path()
        _folders[trainer] = trainer.strategy.broadcast(chosen)
    return _folders[trainer]


def set_run_folder(trainer: pl.Trainer, folder: Path) -> None:
    """Set the run folder of ``trainer``, whatever its loggers; to be called on every process."""
    _folders[trainer] = folder
    _named.add(trainer)


def share_run_folder(trainer: pl.Trainer) -> None:
    """Let the umask determine the permissions of the run folder of ``trainer``, before it is made."""
    _shared.add(trainer)


def is_named(trainer: pl.Trainer) -> bool:
    """Return whether the user named the run folder (``--run``), so that the same command resumes the run."""
    return trainer in _named


def is_trial(trainer: pl.Trainer) -> bool:
    """Return whether this is a ``fast_dev_run``, whose files are not kept."""
    return bool(getattr(trainer, "fast_dev_run", False))


def move_aside(folder: Path) -> Path:
    """Rename the folder of an earlier run by the next free number, as in ``NAME-earlier1``, and return its new path."""
    number = 1
    while (moved := folder.with_name(f"{folder.name}-earlier{number}")).exists():
        number += 1
    return folder.rename(moved)


def _choose(trainer: pl.Trainer) -> Path:
    if is_trial(trainer):
        folder = Path(tempfile.mkdtemp(prefix="fast_dev_run-"))
        finalize(trainer, shutil.rmtree, folder, ignore_errors=True)
        return folder
    mode = SHARED if trainer in _shared else PRIVATE
    first: Any = trainer.loggers[0] if trainer.loggers else None
    if isinstance(first, TensorBoardLogger | CSVLogger):
        folder = Path(first.log_dir)
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=mode, exist_ok=True)
        return folder
    return _new_folder(Path(trainer.default_root_dir or os.getcwd()), mode)


def _new_folder(root: Path, mode: int) -> Path:
    """Make the first free ``run_N``; two runs that start at the same time get different ones."""
    root.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        folder = root / f"run_{number}"
        try:
            folder.mkdir(mode=mode)
        except FileExistsError:
            number += 1
        else:
            return folder
