"""Places at which a run kills itself with SIGKILL, so that trials certainly meet what a random moment seldom does.

Each trap wraps one function of the run and springs at the n-th call of it. What a file then holds is what a kill in the
middle of the writing leaves: half of it.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLACES: dict[str, int] = {
    "while the cache is built": 2,
    "between forward and backward": 10,
    "while a checkpoint is written": 4,
    "in an evaluation": 5,
    "after an optimiser step": 6,
    "while a result file is written": 5,
    "after a checkpoint is renamed": 4,
}
"""Every place, and how often a run of two epochs surely comes there."""


def die() -> None:
    """End this process and its loader workers as `kill -9` does."""
    os.killpg(0, signal.SIGKILL)


def set_trap(place: str, count: int) -> None:
    """Let the ``count``-th coming to ``place`` be the last."""
    import torch

    from dipo_lightning.benchmarks.user_data import callback as user_data
    from dipo_lightning.methods.dipo.module import DiPOModule
    from dipo_lightning.reference.cache import PositionCache

    traps: dict[str, Callable[[int], None]] = {
        "while the cache is built": lambda n: wrap(PositionCache, "_write", n, before=half_a_row),
        "between forward and backward": lambda n: wrap(DiPOModule, "training_step", n),
        "while a checkpoint is written": lambda n: wrap(Path, "replace", n, before=half_a_file, suffix=".ckpt"),
        "in an evaluation": lambda n: wrap(user_data, "evaluate_rows", n),
        "after an optimiser step": lambda n: wrap(torch.optim.AdamW, "step", n),
        "while a result file is written": lambda n: wrap(Path, "replace", n, before=half_a_file, suffix=".json"),
        "after a checkpoint is renamed": lambda n: wrap(Path, "replace", n, suffix=".ckpt"),
    }
    traps[place](count)


def wrap(owner: Any, name: str, count: int, before: Callable | None = None, suffix: str | None = None) -> None:
    """Die at the ``count``-th call of ``owner.name``: after it, or, with ``before``, instead of it.

    Args:
        before: Called with the arguments of that call, to leave what a kill in its middle leaves.
        suffix: Count the calls only whose second argument is a path that ends so.
    """
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += suffix is None or Path(arguments[1]).suffix == suffix
        last = calls == count and (suffix is None or Path(arguments[1]).suffix == suffix)
        if last and before is not None:
            before(*arguments, **options)
            die()
        result = original(*arguments, **options)
        if last:
            die()
        return result

    setattr(owner, name, counted)


def half_a_file(path: Path, target: Path) -> None:
    """Cut the temporary file where a kill might have."""
    os.truncate(path, path.stat().st_size // 2)


def half_a_row(cache: Any, rows: Any) -> None:
    """Write wrong numbers of the first row only, and mark none as done."""
    slot, values = next(iter(rows.items()))
    start = cache.starts[slot]
    cache.values[start : start + 1] = values[:1] + 1
    cache.values.flush()
