"""Batches of rows for measuring, dealt out to processes by a plan that is the same on any number of them.

Batches are planned over all rows at once and batch i goes to process i modulo the world size, so a row meets the same
neighbours (and the same rounding) on one device and on many, and is computed exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

T = TypeVar("T")
R = TypeVar("R")


def plan_batches(lengths: Sequence[int], budget: int, equal: bool = False) -> list[list[int]]:
    """Group rows of like length so that no batch holds more than ``budget`` tokens, padding included.

    Args:
        lengths: Tokens of each row.
        budget: Most tokens of a batch; a longer row gets a batch of its own.
        equal: Put together rows of one length only, for models that padding disturbs.

    Returns:
        Indices of each batch, the longest rows first: what doesn't fit the memory fails at once.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if room == 0 or (equal and lengths[index] != lengths[batches[-1][0]]):
            batches.append([])
            room = max(1, budget // max(1, lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches


def own_batches(batches: Sequence[list[T]]) -> Iterator[tuple[list[T], bool]]:
    """Give this process its batches, the same number on every process.

    A sharded model gathers its weights in every forward, so a process without work has to take part: it is given the
    last batch again.

    Yields:
        The batch, and whether it is this process's own (else its results are dropped).
    """
    rank, world = rank_and_world()
    for start in range(0, len(batches), world):
        own = start + rank < len(batches)
        yield (batches[start + rank] if own else batches[-1]), own


def shared_out(
    batches: Sequence[list[T]],
    compute: Callable[[list[T]], Mapping[int, R]],
    progress: Callable[[int], object] | None = None,
) -> dict[int, R]:
    """Compute batches on all processes and bring their results together; collective.

    Args:
        batches: The same on every process.
        compute: Results of a batch by row index.
        progress: Called with the number of results after each own batch, and with those of the other processes.
    """
    results: dict[int, R] = {}
    for batch, own in own_batches(batches):
        found = compute(batch)
        if own:
            results.update(found)
            if progress is not None:
                progress(len(found))
    done = len(results)
    results = gather(results)
    if progress is not None:
        progress(len(results) - done)
    return results


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(results: Mapping[int, T]) -> dict[int, T]:
    """Bring the results of all processes together by row index; collective, and the same on every process."""
    _, world = rank_and_world()
    if world == 1:
        return dict(results)
    parts: list[dict[int, T] | None] = [None] * world
    dist.all_gather_object(parts, dict(results))
    return {index: value for part in parts if part is not None for index, value in part.items()}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Measure ``model`` without leaving a trace: no dropout, no gradients, and random states as they were before.

    The mode of every submodule comes back as it was, not merely ``train()`` for all.
    """
    training = [(module, module.training) for module in model.modules()]
    try:
        with isolate_rng(), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in training:
            module.training = mode
