"""One vector for each supervised position of a data set, computed once and memory-mapped from disk.

It is keyed by everything the vectors depend on; another key is another folder, so that a stale cache is never found.
Rows are marked done one by one: a cache whose making was cut off goes on where it stopped, and is not read before it
is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dipo_lightning.data.pairs import Example, supervised_count
from dipo_lightning.errors import RunError
from dipo_lightning.models.distributed import gather, own_batches, rank_and_world
from dipo_lightning.models.token_batch import TokenBatch, collate

FORMAT = "dipo-lightning/positions/1"
_BLOCK = 2**24


def cache_key(examples: Sequence[Example], **content: Any) -> str:
    """Return a hash of the tokenised rows and of everything else that the vectors depend on (plain values)."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example["index"], example["input_ids"], example["labels"]]).encode())
    return digest.hexdigest()


class PositionCache:
    """(positions, width) float32 vectors on disk, read by row index.

    Args:
        root: Folder of all caches; this one's is ``root/key[:16]``.
        key: See `cache_key`.
        examples: The tokenised rows, in order.
        width: Numbers a position.
    """

    def __init__(self, root: Path, key: str, examples: Sequence[Example], width: int) -> None:
        self.folder, self.examples, self.width = root / key[:16], examples, width
        counts = [supervised_count(example) for example in examples]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.slots = {example["index"]: slot for slot, example in enumerate(examples)}
        self.manifest: dict[str, Any] = {
            "format": FORMAT,
            "key": key,
            "rows": len(examples),
            "positions": int(sum(counts)),
            "width": width,
        }

    def create(self) -> None:
        """Make the files where there are none; one process does this, before any other opens them.

        Raises:
            RunError: They cannot be written, or the disk has no room for them.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            manifest = self.folder / "manifest.json"
            if not manifest.exists():
                for name, size in self.sizes.items():
                    allocate(self.folder / name, size)
                partial = manifest.with_suffix(".partial")
                partial.write_text(json.dumps(self.manifest))
                partial.rename(manifest)
        except OSError as error:
            raise RunError(
                f"The cache {self.folder} ({sum(self.sizes.values()) / 1e6:.1f} MB) cannot be written: "
                f"{error.strerror or error}. Set model.reference_cache to a folder with room, or model.reference: live."
            ) from error

    @property
    def shape(self) -> tuple[int, int]:
        """(positions, width)."""
        return max(1, self.manifest["positions"]), self.width

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {"values.bin": 4 * self.shape[0] * self.width, "done.bin": len(self.examples)}

    def open(self) -> None:
        """Map the files as they are on disk now, after checking that they are this cache's.

        Raises:
            RunError: The folder holds a cache of another key, shape or format, or a truncated one.
        """
        try:
            found = json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"The cache {self.folder} cannot be read ({error}); delete it and run again.") from error
        if found != self.manifest:
            raise RunError(f"The cache {self.folder} is of other data or weights ({found}); delete it and run again.")
        for name, size in self.sizes.items():
            if (self.folder / name).stat().st_size != size:
                raise RunError(f"The cache file {self.folder / name} is truncated; delete {self.folder} and run again.")
        self.values = np.memmap(self.folder / "values.bin", np.float32, "r+", shape=self.shape)
        self.done = np.memmap(self.folder / "done.bin", np.uint8, "r+", shape=(len(self.examples),))
        self.missing = np.flatnonzero(self.done == 0).tolist()

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return bool(self.done.all())

    def build(self, compute: Callable[[TokenBatch], Tensor], batch_size: int, device: torch.device) -> None:
        """Fill in the missing rows: every process computes its share, and the first one writes what all have.

        One writer, because hosts that share a folder do not share the pages they map of a file: each would write its
        own copy of a page back, with the others' rows missing.

        Collective. All have called `open` before the first one gets here, so that they see the same rows missing, and
        call it again, behind a barrier, to see what was written.

        Args:
            compute: Gives (N, width) for a token batch; may be collective.
            batch_size: Rows of a batch.
            device: Where batches go.
        """
        first = rank_and_world()[0] == 0
        starts = range(0, len(self.missing), batch_size)
        batches = list(own_batches([self.missing[start : start + batch_size] for start in starts]))
        for slots, own in tqdm(batches, desc="reference cache", disable=not first or not batches, unit="batch"):
            batch = collate([self.examples[slot] for slot in slots], pad_token_id=0)
            values = compute({name: value.to(device) for name, value in batch.items()}).float().cpu().numpy()
            ends = np.cumsum([self.starts[slot + 1] - self.starts[slot] for slot in slots])
            rows = gather(dict(zip(slots, np.split(values, ends[:-1]), strict=True)) if own else {})
            if first:
                self._write(rows)

    def _write(self, rows: Mapping[int, np.ndarray]) -> None:
        """Write the vectors of each slot, and call it done."""
        for slot, values in rows.items():
            self.values[self.starts[slot] : self.starts[slot + 1]] = values
        self.values.flush()  # the vectors are on disk before their rows are called done
        self.done[list(rows)] = 1
        self.done.flush()

    def read(self, index: Tensor) -> Tensor:
        """Return (N, width) float32 vectors of the rows ``index`` (B,), row after row, on its device.

        Raises:
            RunError: The cache was made of other rows.
        """
        parts = []
        for row in index.tolist():
            slot = self.slots.get(row)
            if slot is None:
                raise RunError(
                    f"The cache {self.folder} knows no row {row}: a batch holds rows that are not among the data "
                    "module's forget_examples. Set model.reference: live."
                )
            parts.append(self.values[self.starts[slot] : self.starts[slot + 1]])
        return torch.from_numpy(np.concatenate(parts)).to(index.device, non_blocking=True)


def allocate(path: Path, size: int) -> None:
    """Make a file of ``size`` zero bytes that the disk has room for: a mapped file without room ends in SIGBUS."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            for start in range(0, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - start)))
