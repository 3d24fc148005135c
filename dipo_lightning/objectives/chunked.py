"""The DiPO margin from hidden states: equal to the plain one, in a memory that does not grow with tokens x vocabulary.

With d = preferred - dispreferred, W the policy's output projection and x its hidden states, a token's margin is

    <d, W x - h_ref> = <W^T d, x> - <d, h_ref>

so with g = W^T d the gradient on x is g, and the gradient on W is the sum of d x^T. The forward keeps g (hidden size a
token); the backward makes d again chunk by chunk, or keeps it where one chunk holds all positions. In units of N V H
multiply-adds the cost is 1 (reference logits) + 1 (g) + 1 (gradient on W; + 1 where d is made again), as plain
cross-entropy on full logits has 3. Where W is frozen it is 2.

Only for heads that are a plain projection: a bias or a soft cap needs the full-logits path (`dipo.margin`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dipo_lightning.errors import InputError
from dipo_lightning.objectives.closed import Kept, closed_gradients, keep
from dipo_lightning.objectives.differences import Inside, Plan, Source, Workspace
from dipo_lightning.objectives.options import PairOptions
from dipo_lightning.objectives.projection import (
    align,
    check_chunk_size,
    check_projection,
    slices,
)


class MarginWithRewards(NamedTuple):
    """Token margins and both rewards.

    Attributes:
        margin: (N,) with gradient.
        preferred: (N,) R(preferred) / beta, without gradient.
        dispreferred: (N,) R(dispreferred) / beta, without gradient; margin = preferred - dispreferred.
    """

    margin: Tensor
    preferred: Tensor
    dispreferred: Tensor


class _ChunkedMargin(torch.autograd.Function):
    """Token margins with the gradient worked out by hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        reference_hidden: Tensor,
        reference_weight: Tensor,
        plan: Plan,
    ) -> tuple[Tensor, Tensor]:
        """Compute margins and preferred rewards chunk by chunk.

        Args:
            ctx: Autograd's context.
            hidden: (N, H) the policy's hidden states, in the dtype of ``weight``.
            weight: (V, H) the policy's projection, of any floating-point dtype.
            reference_hidden: (N, H_ref), in the dtype of ``reference_weight``; no gradient.
            reference_weight: (V, H_ref); no gradient.
            plan: What is fixed for the call.

        Returns:
            (N,) margins, and (N,) preferred rewards over beta without a gradient (0 unless the plan asks for them),
            float32 or, where a projection is float64, float64.
        """
        work = Workspace(plan, hidden, weight, (reference_hidden, reference_weight))
        count = len(hidden)
        explicit = plan.explicit(weight.dtype)
        margins = torch.empty(count, dtype=work.dtype, device=hidden.device)
        preferred = torch.zeros_like(margins)
        directions = torch.empty_like(hidden, dtype=work.dtype) if not explicit or ctx.needs_input_grad[0] else None
        differences = work.buffer(min(count, plan.chunk_size))
        scratch = None if plan.shared and not explicit else work.buffer(min(count, work.size))
        for chunk in slices(count, plan.chunk_size):
            out = differences[: chunk.stop - chunk.start]
            offset = None
            insides: list[Inside] | None = [] if plan.with_rewards else None
            if scratch is None:
                work.fill(chunk, out, insides)
            elif explicit:
                margins[chunk], preferred[chunk] = work.fill_and_compare(chunk, out, scratch)
            else:
                offset = work.fill_and_measure(chunk, out, scratch, insides)
            if directions is not None:
                directions[chunk] = out.to(weight.dtype) @ weight
            if not explicit and directions is not None:
                gap = hidden[chunk] - reference_hidden[chunk] if offset is None else hidden[chunk]
                margins[chunk] = (directions[chunk] * gap).sum(-1)
                if offset is not None:
                    margins[chunk] -= offset
            start = chunk.start
            for inside in insides or ():
                piece = slice(start, start := start + len(inside.share))
                preferred[piece] = inside.preferred(margins[piece], hidden[piece], weight)
        ctx.plan = plan
        keep(ctx, hidden, weight, directions, differences, plan.chunk_size, reference_hidden, reference_weight)
        ctx.mark_non_differentiable(preferred)
        return margins, preferred

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients on ``hidden`` (N, H) and ``weight`` (V, H), each in its dtype, or None.

        Args:
            ctx: Autograd's context.
            upstream: (N,) gradient on the margins, in their dtype.
            _: That on the rewards, which have none.

        Returns:
            One for each argument of the forward pass; the reference and the plan get None.
        """
        kept = Kept.of(ctx)
        reference_hidden, reference_weight = kept.others
        work = Workspace(ctx.plan, kept.hidden, kept.weight, (reference_hidden, reference_weight))
        return *closed_gradients(ctx, kept, upstream, work.fill, work.buffer), None, None, None


def _apply(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    options: PairOptions,
    chunk_size: int,
    source: Source,
    with_rewards: bool,
    compare: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check, align the dtypes and run the function outside autocast."""
    check_chunk_size(chunk_size)
    check_projection(hidden, weight, "policy")
    check_projection(reference_hidden, reference_weight, "reference")
    options.check_vocabulary(weight.shape[0])
    if source not in ("reference", "policy"):
        raise InputError(f"source is {source!r}; use 'reference' or 'policy'")
    if len(hidden) != len(reference_hidden) or len(weight) != len(reference_weight):
        raise InputError(
            f"the policy has {len(hidden)} positions and {len(weight)} tokens, the reference {len(reference_hidden)} "
            f"and {len(reference_weight)}; both must be the same batch and vocabulary"
        )
    shared = reference_weight is weight and source == "reference"
    hidden, weight = align(hidden, weight)
    reference_hidden, reference_weight = align(reference_hidden.detach(), reference_weight.detach())
    with torch.autocast(hidden.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _ChunkedMargin.apply(
            hidden,
            weight,
            reference_hidden,
            reference_weight,
            Plan(options, chunk_size, source, with_rewards, shared, compare),
        )
    return result


def chunked_margin(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    options: PairOptions,
    chunk_size: int = 1024,
    source: Source = "reference",
) -> Tensor:
    """Compute the margin of each position from hidden states.

    Args:
        hidden: (N, H) the policy's last hidden states (after the final norm) at the selected positions.
        weight: (V, H) the policy's output projection. Give the *same tensor* as `reference_weight` where the
            projection is frozen: the margin is then exactly 0 where the hidden states are equal.
        reference_hidden: (N, H_ref) the reference's last hidden states at the same positions.
        reference_weight: (V, H_ref) the reference's output projection.
        options: how the pair is made.
        chunk_size: positions whose vocabulary-sized values may live at the same time.
        source: whose logits the pair is made from; `policy` logits are taken as constants.

    Returns:
        (N,) <d, h_policy - h_reference>, float32 (float64 for float64 inputs), differentiable once in `hidden` and
        `weight`. Reduce with `sequence_sum` or `sequence_mean`.

    Raises:
        InputError: when shapes or options do not fit.
    """
    return _apply(hidden, weight, reference_hidden, reference_weight, options, chunk_size, source, False)[0]


def chunked_margin_with_rewards(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    options: PairOptions,
    chunk_size: int = 1024,
    source: Source = "reference",
    compare: bool = False,
) -> MarginWithRewards:
    """Compute `chunked_margin` and both rewards of each position.

    With a small set (`top_k`, centered) in float32 they cost next to nothing, else another policy projection (N V H).

    Args:
        hidden: (N, H), as for `chunked_margin`.
        weight: (V, H).
        reference_hidden: (N, H_ref).
        reference_weight: (V, H_ref).
        options: how the pair is made.
        chunk_size: positions whose vocabulary-sized values may live at the same time.
        source: whose logits the pair is made from.
        compare: form the policy's logits beside the reference's (N V H more): all three are then exactly 0 where both
            are equal, also where the projection is trained.

    Returns:
        Margins and rewards over beta.

    Raises:
        InputError: when shapes or options do not fit.
    """
    margin, preferred = _apply(
        hidden, weight, reference_hidden, reference_weight, options, chunk_size, source, True, compare
    )
    return MarginWithRewards(margin, preferred, preferred - margin.detach())
