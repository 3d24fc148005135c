"""Keys and values of a decoder's layers: selecting rows and positions of a cache, and joining several caches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers.cache_utils import Cache, DynamicCache

ROOM = 32  # tokens by which a layer's buffer grows

Pairs = list[tuple[Tensor, Tensor]]
"""Keys and values (B, heads, L, head size) of each layer."""


@cache
def roomy_layer() -> Any:
    """Return a cache layer class that writes new tokens into a preallocated buffer instead of copying earlier ones."""
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self.keys, self.values = keys, values
            self.room = keys, values

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """Write the keys and values of new tokens into the buffer, and return those of all tokens."""
            assert self.keys is not None
            assert self.values is not None
            used, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
            if end > self.room[0].shape[-2]:
                self.room = _with_room(self.keys, end + ROOM), _with_room(self.values, end + ROOM)
            for room, states in zip(self.room, (key_states, value_states), strict=True):
                room[..., used:end, :] = states
            self.keys, self.values = (room[..., :end, :] for room in self.room)
            return self.keys, self.values

    return RoomyLayer


def _with_room(states: Tensor, length: int) -> Tensor:
    room = states.new_empty(*states.shape[:-2], length, states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room


def pairs(cache: Cache) -> Pairs:
    """Return the keys and values of a cache; empty if the model did not use it."""
    return [(layer.keys, layer.values) for layer in cache.layers if layer.is_initialized]  # type: ignore[misc,union-attr]


def expanded(beginning: Pairs, rows: int) -> DynamicCache:
    """Return a cache of ``rows`` rows that all begin with the same tokens (1, heads, L, head size)."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(beginning):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return cache


def taken(cache: Cache, rows: Tensor, places: Tensor) -> Pairs:
    """Select positions of rows of a cache.

    Args:
        cache: Cache with (B, heads, L, head size) in each layer.
        rows: (b,) int64.
        places: (b, n) int64, the positions to select in each of these rows.
    """

    def take(states: Tensor) -> Tensor:
        return states[rows[:, None], :, places].transpose(1, 2)

    return [(take(keys), take(values)) for keys, values in pairs(cache)]


def joined(parts: Sequence[Pairs], masks: Sequence[Tensor]) -> tuple[Cache, Tensor]:
    """Join rows of several lengths, padded on the left, in a cache that can grow.

    Args:
        parts: Keys and values of each part; the rows of a part have equal lengths.
        masks: (b, n) int64 of each part, 0 for padding.

    Returns:
        The cache, and the (B, L) mask of all rows.
    """
    from transformers.cache_utils import Cache

    count, length = sum(len(mask) for mask in masks), max(mask.shape[1] for mask in masks)
    mask = masks[0].new_zeros(count, length)

    def join(states: Sequence[Tensor]) -> Tensor:
        """Stack states (b, heads, n, head size), padded on the left."""
        room = states[0].new_zeros(count, states[0].shape[1], length, states[0].shape[-1])
        start = 0
        for one in states:
            room[start : start + len(one), :, length - one.shape[-2] :] = one
            start += len(one)
        return room

    start = 0
    for one in masks:
        mask[start : start + len(one), length - one.shape[1] :] = one
        start += len(one)
    layers = [tuple(zip(*layer, strict=True)) for layer in zip(*parts, strict=True)]
    return Cache(layers=[roomy_layer()(join(keys), join(values)) for keys, values in layers]), mask


def selected(cache: Cache, rows: Tensor) -> Cache:
    """Return a cache of only the rows (b,)."""
    from transformers.cache_utils import Cache

    return Cache(layers=[roomy_layer()(keys[rows], values[rows]) for keys, values in pairs(cache)])
