"""Vectors of every supervised position of a data set, computed once and memory-mapped from disk.

The name of a cache's folder is a hash of everything its vectors depend on, so that a stale one is never used.
One run at a time writes it, under a temporary name that becomes final once all rows are there: an interrupted run
resumes where it stopped, and an incomplete cache is never read. Every row has a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from dipo_lightning.data.loader import Example, supervised_count
from dipo_lightning.errors import RunError
from dipo_lightning.models.answers import TokenBatch, collate
from dipo_lightning.models.distributed import gather, own_batches, rank_and_world

FORMAT = "dipo-lightning/positions/2"
_BLOCK = 2**24
_WRITTEN = 1 << 32  # above the 32 bits of a checksum, so that no written row has the mark 0


def cache_key(examples: Sequence[Example], **content: Any) -> str:
    """Return a hash of the tokenised rows and of everything else that the vectors depend on (plain values)."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example["index"], example["input_ids"], example["labels"]]).encode())
    return digest.hexdigest()


class PositionCache:
    """(positions, width) float32 vectors on disk, read by row index.

    Args:
        root: Folder of all caches; this one is ``root/key[:16]``, and ``root/key[:16].partial`` until it is complete.
        key: See `cache_key`.
        examples: The tokenised rows, in order.
        width: Length of the vector of each position.
    """

    def __init__(self, root: Path, key: str, examples: Sequence[Example], width: int) -> None:
        self.folder, self.examples, self.width = root / key[:16], examples, width
        self.partial = self.folder.with_name(self.folder.name + ".partial")
        counts = [supervised_count(example) for example in examples]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.slots = {example["index"]: slot for slot, example in enumerate(examples)}
        self.shape = (max(1, int(sum(counts))), width)
        self.sizes = {"values.bin": 4 * self.shape[0] * width, "marks.bin": 8 * len(examples)}
        self.manifest = {"format": FORMAT, "key": key, "rows": len(examples), "shape": list(self.shape)}
        self._checked: set[int] = set()
        self._lock: IO[str] | None = None

    def claim(self) -> None:
        """Claim an incomplete cache for this process alone, after waiting for another run that is making it.

        Called by one process of a run, before any of them opens the cache.

        Raises:
            RunError: It cannot be written, or the disk has no space for it.
        """
        if self.folder.exists():
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.folder.with_suffix(".lock"))
            manifest = self.partial / "manifest.json"
            if not self.folder.exists() and not manifest.exists():
                self.partial.mkdir(exist_ok=True)
                for name, size in self.sizes.items():
                    allocate(self.partial / name, size)
                manifest.with_suffix(".new").write_text(json.dumps(self.manifest))
                manifest.with_suffix(".new").rename(manifest)
        except OSError as error:
            self.release()
            raise RunError(
                f"The cache {self.folder} ({sum(self.sizes.values()) / 1e6:.1f} MB) cannot be written: "
                f"{error.strerror or error}. Set model.reference_cache to a folder with room, or model.reference: live."
            ) from error

    def finish(self) -> None:
        """Give the complete cache its final name; called by the process that claimed it."""
        self.partial.rename(self.folder)

    def release(self) -> None:
        """Release the claim, so that another run can make the cache."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def open(self) -> None:
        """Map the files on disk, after checking that they belong to this cache.

        Raises:
            RunError: The folder holds a cache of another key, shape or format, or a truncated one.
        """
        self.complete = self.folder.exists()
        folder, mode = (self.folder, "r") if self.complete else (self.partial, "r+")
        try:
            found = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"The cache {folder} cannot be read ({error}); delete it and run again.") from error
        if found != self.manifest:
            raise RunError(f"The cache {folder} is of other data or weights ({found}); delete it and run again.")
        for name, size in self.sizes.items():
            if (folder / name).stat().st_size != size:
                raise RunError(f"The cache file {folder / name} is truncated; delete {folder} and run again.")
        self.values = np.memmap(folder / "values.bin", np.float32, mode, shape=self.shape)  # type: ignore[call-overload]
        self.marks = np.memmap(folder / "marks.bin", np.uint64, mode, shape=(len(self.examples),))  # type: ignore[call-overload]
        self.missing = np.flatnonzero(self.marks == 0).tolist()
        if self.complete and self.missing:
            raise RunError(f"The cache {folder} lacks {len(self.missing)} rows; delete it and run again.")

    def build(self, compute: Callable[[TokenBatch], Tensor], batch_size: int, device: torch.device) -> None:
        """Fill in the missing rows: every process computes its share, and the first one writes all of them.

        There is one writer because hosts that share a folder do not share the mapped pages of a file: each would write
        back its own copy of a page, without the others' rows. Collective; all processes must have called `open` before
        the first one gets here, so that they see the same rows missing. ``compute`` returns (N, width) for a token
        batch, and may be collective.
        """
        first = rank_and_world()[0] == 0
        starts = range(0, len(self.missing), batch_size)
        batches = list(own_batches([self.missing[start : start + batch_size] for start in starts]))
        hidden = None if first and batches else True  # None: shown in a terminal only
        for slots, own in tqdm(batches, desc="reference cache", disable=hidden, unit="batch", leave=False):
            batch = collate([self.examples[slot] for slot in slots], pad_token_id=0)
            values = compute({name: value.to(device) for name, value in batch.items()}).float().cpu().numpy()
            ends = np.cumsum([self.starts[slot + 1] - self.starts[slot] for slot in slots])
            rows = gather(dict(zip(slots, np.split(values, ends[:-1]), strict=True)) if own else {})
            if first:
                self._write(rows)

    def _write(self, rows: Mapping[int, np.ndarray]) -> None:
        """Write the vectors of each slot, then their checksums, which mark them as written."""
        for slot, values in rows.items():
            self.values[self.starts[slot] : self.starts[slot + 1]] = values
        self.values.flush()
        for slot in rows:
            self.marks[slot] = self._mark(slot)
        self.marks.flush()

    def _mark(self, slot: int) -> int:
        """Return the checksum of a row's vectors, with the mark that they are written."""
        return _WRITTEN | zlib.crc32(self.values[self.starts[slot] : self.starts[slot + 1]].tobytes())

    def read(self, index: Tensor) -> Tensor:
        """Return (N, width) float32 vectors of the rows ``index`` (B,), row after row, on its device.

        Raises:
            RunError: The cache was made from other rows, or a row's vectors are damaged.
        """
        parts = []
        for row in index.tolist():
            slot = self.slots.get(row)
            if slot is None:
                raise RunError(
                    f"The cache {self.folder} has no row {row}: a batch holds rows that are not among the data "
                    "module's forget_examples or retain_examples. Set model.reference: live."
                )
            if slot not in self._checked and int(self.marks[slot]) != self._mark(slot):
                raise RunError(f"The cache {self.folder} is damaged (row {row}); delete it and run again.")
            self._checked.add(slot)
            parts.append(self.values[self.starts[slot] : self.starts[slot + 1]])
        return torch.from_numpy(np.concatenate(parts)).to(index.device, non_blocking=True)


def allocate(path: Path, size: int) -> None:
    """Make a file of ``size`` zero bytes, allocated on disk: a mapped file without space ends in SIGBUS."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            for start in range(0, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - start)))


def locked(path: Path) -> IO[str]:
    """Lock a file, waiting for its present holder; the lock ends with the process or when the file is closed."""
    file = path.open("w")
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        rank_zero_info(f"Waiting for another run that makes the same reference cache (lock: {path}).")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return file
    return file
