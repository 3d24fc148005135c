"""Safe reading of a sharded checkpoint: nothing in its folder is executed.

torch's own reader unpickles the table of contents (``.metadata``), and every value that is not a tensor, without
restrictions. So both are checked here first: the table with an unpickler that accepts only torch's own record types,
the values with ``weights_only``.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from dipo_lightning.errors import InputError

CONTENTS = ".metadata"
_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},  # where Python 3.13 keeps them
}


class SafeReader(FileSystemReader):
    """torch's reader of a folder of shards, with a table of contents that can't run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the table of contents."""
        contents = read_contents(Path(self.path))
        contents.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        return contents


def read_contents(folder: Path) -> Metadata:
    """Read the table of contents of a folder of shards.

    Raises:
        InputError: It is broken, or names anything but torch's own records.
    """
    path = folder / CONTENTS
    try:
        contents = _RecordsOnly(io.BytesIO(path.read_bytes())).load()
    except InputError as error:
        raise InputError(f"{path} {error}, so it is not loaded.") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint's table of contents: {error}") from error
    if not isinstance(contents, Metadata) or not isinstance(contents.storage_data, dict):
        raise InputError(f"{path} is not a checkpoint's table of contents.")
    if getattr(contents, "storage_meta", None) is None:
        from torch.distributed.checkpoint.metadata import StorageMeta

        contents.storage_meta = StorageMeta()
    return contents


def check_shards(folder: Path) -> None:
    """Raise an `InputError` if a folder of shards holds more than tensors and plain values, before it is loaded."""
    contents = read_contents(folder)
    plain = {name for name, kept in contents.state_dict_metadata.items() if isinstance(kept, BytesStorageMetadata)}
    for where, piece in contents.storage_data.items():
        if where.fqn in plain:
            _check_value(folder, where.fqn, piece)


def _check_value(folder: Path, name: str, piece: Any) -> None:
    """Load one value as torch will, but with ``weights_only``."""
    try:
        with (folder / piece.relative_path).open("rb") as file:
            file.seek(piece.offset)
            torch.load(io.BytesIO(file.read(piece.length)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{folder} holds more than tensors and plain values, so it is not loaded: {name}") from error
    except (RuntimeError, EOFError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder} cannot be read as a checkpoint: {name}: {error}") from error


class _RecordsOnly(pickle.Unpickler):
    """Unpickler that accepts torch's record types and nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a record type, or raise an `InputError`."""
        if name not in _RECORDS.get(module, ()):
            raise InputError(f"names {module}.{name}, which is not part of a table of contents")
        return super().find_class(module, name)
