"""Any token-wise objective in chunks of positions, for heads whose algebra allows no closed form.

A soft cap or a bias breaks what `chunked` stands on. What lies between hidden states and token values is then run chunk
by chunk, kept by no one, and run again in the backward pass: the memory doesn't grow with tokens x vocabulary either,
and the projection runs once more than on full logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dipo_lightning.objectives.projection import check_chunk_size, slices


def in_chunks(function: Callable[..., tuple[Tensor, ...]], chunk_size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return what ``function`` gives for all positions, computed for few at a time and again for the gradient.

    Args:
        function: Gives (n, ...) tensors for the same n positions of each input; draws no random numbers. What it
            closes over may be differentiated too.
        chunk_size: Positions whose values inside ``function`` may live at the same time.
        *inputs: (N, ...) tensors.

    Returns:
        (N, ...) tensors, differentiable as ``function`` is.

    Raises:
        InputError: when ``chunk_size`` is below 1.
    """
    check_chunk_size(chunk_size)
    parts = [
        checkpoint(function, *(value[chunk] for value in inputs), use_reentrant=False, preserve_rng_state=False)
        for chunk in list(slices(len(inputs[0]), chunk_size)) or [slice(0, 0)]
    ]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))
