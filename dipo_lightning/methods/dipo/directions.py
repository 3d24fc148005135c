"""The forget loss without a reference model or vocabulary-sized work, for runs that freeze the output projection.

Then g = W^T d and c = <d, h_ref> depend on the reference alone. Computed once for the forget set, they give the margin
<g, x> - c exactly in every epoch. Two vectors of hidden size and two numbers per token are stored, since the rewards of
both members of the pair are wanted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.losses.chunking import (
    align,
    check_projection,
    piece_size,
    project,
    slices,
    working_dtype,
)
from dipo_lightning.methods.dipo.pair import PairOptions, factor

_VOCABULARY_SLICE = 8192


class Directions(NamedTuple):
    """Tensors of each position that the margin and the rewards need.

    Attributes:
        preferred: (N, H) W^T (preferred - reference).
        dispreferred: (N, H) W^T (dispreferred - reference).
        preferred_offset: (N,) <preferred - reference, h_ref>.
        dispreferred_offset: (N,) <dispreferred - reference, h_ref>.
    """

    preferred: Tensor
    dispreferred: Tensor
    preferred_offset: Tensor
    dispreferred_offset: Tensor


def _pull_back(part: Tensor, weight: Tensor) -> Tensor:
    """Compute part @ weight in the dtype of `part`, raising a half-precision weight slice by slice."""
    if part.dtype == weight.dtype:
        return part @ weight
    total = part.new_zeros(len(part), weight.shape[1])
    for piece in slices(len(weight), _VOCABULARY_SLICE):
        total.addmm_(part[:, piece], weight[piece].to(part.dtype))
    return total


@torch.no_grad()
def directions(
    reference_hidden: Tensor,
    reference_weight: Tensor,
    projection_weight: Tensor,
    options: PairOptions,
    chunk_size: int = 1024,
) -> Directions:
    """Compute the directions of each position, chunk by chunk.

    Args:
        reference_hidden: (N, H_ref) the reference's last hidden states at the selected positions.
        reference_weight: (V, H_ref) the reference's output projection.
        projection_weight: (V, H) the policy's frozen output projection. If the policy started from the reference, give
            the same tensor as `reference_weight`: equal hidden states then have a margin of exactly 0.
        options: Form of the pair, which is made from the reference's logits.
        chunk_size: Number of positions whose vocabulary-sized values are in memory at the same time.

    Returns:
        Directions in float32 (float64 for float64 inputs).

    Raises:
        InputError: Shapes or options do not fit.
    """
    check_numbers("", {"chunk_size": chunk_size})
    check_projection(reference_hidden, reference_weight, "reference")
    options.check_vocabulary(len(reference_weight))
    if len(reference_weight) != len(projection_weight):
        raise InputError(
            f"the reference's projection has {len(reference_weight)} tokens, the policy's {len(projection_weight)}; "
            "both must be of the same vocabulary"
        )
    hidden, weight = align(reference_hidden, reference_weight)
    dtype = working_dtype(reference_weight, projection_weight)
    count, size = len(hidden), piece_size(hidden.device, chunk_size)
    vectors = [torch.empty(count, projection_weight.shape[1], dtype=dtype, device=hidden.device) for _ in range(2)]
    offsets = [torch.empty(count, dtype=dtype, device=hidden.device) for _ in range(2)]
    shared = reference_weight is projection_weight
    buffer = torch.empty(min(count, chunk_size), len(weight), dtype=dtype, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for piece in slices(count, size):
            logits = project(hidden[piece], weight, buffer[: piece.stop - piece.start])
            pair = factor(logits, options)
            for vector, offset, member in zip(vectors, offsets, (pair.preferred, pair.dispreferred), strict=True):
                part = pair.dense(member - pair.base)
                vector[piece] = _pull_back(part, projection_weight)
                measured, by = (vector[piece], hidden[piece]) if shared else (part, logits)
                offset[piece] = (measured * by).sum(-1)
    return Directions(vectors[0], vectors[1], offsets[0], offsets[1])


def margin_from_directions(hidden: Tensor, vector: Tensor) -> Tensor:
    """Compute <g, x> of each position, differentiable in `hidden`; minus the offset it is a reward over beta.

    Args:
        hidden: (N, H) the policy's last hidden states at the selected positions.
        vector: (N, H) one of the two vectors of `Directions`.
    """
    dtype = working_dtype(hidden, vector)
    return (vector.to(dtype) * hidden.to(dtype)).sum(-1)
