"""Files and folders of a checkpoint: written beside their target, streamed, and put in its place in one step."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class StreamingIO(TorchCheckpointIO):
    """Lightning's checkpoint files, streamed to the disk they end on.

    Lightning's own writer holds the whole file in memory once more, and passes it through the system's temporary
    folder; its reader holds all of it. Remote paths are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``path`` whole or not at all."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            torch.save(checkpoint, partial)
            replace(partial, target)
        except RuntimeError as error:  # how torch's writer says that the disk is full
            if not any(sign in str(error) for sign in ("iostream", "unexpected pos", "PytorchStreamWriter")):
                raise
            raise OSError(errno.ENOSPC, "no room on the disk, or it can't be written", str(target)) from error
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read ``path``, its tensors as they are asked for."""
        if "://" in str(path) or not Path(path).is_file():
            return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace(partial: Path, path: Path) -> None:
    """Put ``partial`` in the place of ``path`` after it has reached the disk."""
    for file in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
        sync(file)
    if path.is_dir() or (partial.is_dir() and path.exists()):  # a folder can't be replaced in one step
        old = path.with_name(path.name + ".old")
        remove(old)
        path.rename(old)
        partial.rename(path)
        remove(old)
    else:
        partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
