"""The DiPO margin from hidden states: equal to the plain margin, without ever holding tokens x vocabulary values.

With d = preferred - dispreferred, W the policy's output projection and x its hidden states, a token's margin is

    <d, W x - h_ref> = <W^T d, x> - <d, h_ref>

so with g = W^T d the gradient on x is g, and the gradient on W is the sum of d x^T. The forward pass keeps g (of hidden
size); the backward pass recomputes d chunk by chunk, unless one chunk holds all positions, when d is kept. In units of
N V H multiply-adds the cost is 1 (reference logits) + 1 (g) + 1 (gradient on W; + 1 if d is recomputed), or 2 if W is
frozen; plain cross-entropy on full logits costs 3. Valid for the package's own pair and for heads that are a plain
projection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.losses.chunking import (
    ClosedForm,
    align,
    check_projection,
    piece_size,
    project,
    slices,
    vocabulary_buffer,
)
from dipo_lightning.methods.dipo.loss import TokenMargins
from dipo_lightning.methods.dipo.pair import FactoredPair, PairOptions, factor

_FEW = 16
"""Number of the set's tokens whose rows of the projection are gathered at a time."""
_MANY = 64
"""Size of the set above which the whole projection is cheaper."""


class Plan(NamedTuple):
    """Options of one call of the kernel."""

    options: PairOptions
    chunk_size: int
    with_rewards: bool
    shared: bool
    compare: bool = False

    def explicit(self, dtype: torch.dtype) -> bool:
        """True if policy logits are formed.

        They are needed for pairs made from them, for most rewards, and (in half precision or on request) where both
        models' logits must be rounded alike, so that the margin is exactly 0 if the policy is the reference.
        """
        half = dtype not in (torch.float32, torch.float64)
        options = self.options
        centered = options.memory_vector == "centered"
        dear = self.with_rewards and (half or not centered)  # else the rewards follow from the margin (`Inside`)
        return options.source == "policy" or dear or ((half or self.compare) and not self.shared)


class Inside(NamedTuple):
    """Sums that give the preferred reward from the margin, without the policy's projection.

    Outside the M tokens of the confident set, both differences are multiples of one distribution o:

        margin    = (m_w - m_l) <o, gap> + sum_i (w_i - l_i) gap_i
        preferred = (m_w - m_b) <o, gap> + sum_i (w_i - b_i) gap_i

    where m is the mass outside, and w, l, b the probabilities of preferred, dispreferred and base. So <o, gap> follows
    from the margin, and only the policy's logits on the set are needed.

    Attributes:
        indices: (n, M) int64 the tokens of the set.
        logits: (n, M) the reference's logits on them.
        share: (n,) (m_w - m_b) / (m_w - m_l), in [0, 1] for a centered memory vector.
        weights: (n, M) w - b - share * (w - l).
    """

    indices: Tensor
    logits: Tensor
    share: Tensor
    weights: Tensor

    def preferred(self, margin: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        """Compute the preferred reward over beta (n,) from the margin (n,) and hidden states (n, H)."""
        if self.indices.shape[-1] > _MANY:
            logits = (hidden @ weight.T).gather(-1, self.indices)
        else:
            some = self.indices.split(_FEW, dim=-1)
            logits = torch.cat([torch.einsum("nmh,nh->nm", weight[few], hidden) for few in some], -1)
        return self.share * margin + (self.weights * (logits - self.logits)).sum(-1)


def _inside(pair: FactoredPair) -> Inside:
    """Compute `Inside` from a pair."""
    towards, whole = pair.preferred - pair.base, pair.preferred - pair.dispreferred
    share = torch.where(whole.mass == 0, 0, towards.mass / whole.mass).clamp(0, 1)  # less rounding, where both are tiny
    return Inside(pair.indices, pair.logits, share.squeeze(-1), towards.values - share * whole.values)


class Workspace:
    """Buffers and tensors of one pass over the positions."""

    def __init__(self, plan: Plan, hidden: Tensor, weight: Tensor, reference: tuple[Tensor, ...]) -> None:
        self.plan, self.hidden, self.weight, self.reference = plan, hidden, weight, reference
        self.size = piece_size(hidden.device, plan.chunk_size)

    def fill(
        self, chunk: slice, out: Tensor, scratch: Tensor | None = None, insides: list[Inside] | None = None
    ) -> Tensor | None:
        """Write the differences d of a chunk into `out` (n, V), and append each piece's `Inside` where asked.

        Returns:
            With a `scratch` (m, V) of a piece's length: (n,) <d, h> of the base logits.
        """
        source = (self.hidden, self.weight) if self.plan.options.source == "policy" else self.reference
        values = []
        for piece in slices(len(out), self.size):
            logits = project(source[0][chunk][piece], source[1], out[piece])
            kept = None if scratch is None else scratch[: len(logits)].copy_(logits)
            pair = factor(logits, self.plan.options, in_place=True)
            if insides is not None:
                insides.append(_inside(pair))
            difference = pair.dense(pair.preferred - pair.dispreferred, in_place=True)
            if kept is not None:
                values.append(kept.mul_(difference).sum(-1))
        return torch.cat(values) if values else None

    def fill_and_compare(self, chunk: slice, out: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
        """Write d into `out` and measure the margin <d, h_policy - h_ref> and the preferred reward.

        Returns:
            Two (n,) tensors; the reward is 0 unless asked for.
        """
        margins, rewards = [], []
        for piece in slices(len(out), self.size):
            logits = project(self.reference[0][chunk][piece], self.reference[1], out[piece])
            gap = project(self.hidden[chunk][piece], self.weight, scratch[: len(logits)])
            reward = logits.new_zeros(len(logits))
            if self.plan.options.source == "policy":
                base = gap.clone()
                gap.sub_(logits)
                if self.plan.with_rewards:
                    reward = -(logits.softmax(-1) * gap).sum(-1)
                logits.copy_(base)
            else:
                gap.sub_(logits)
            pair = factor(logits, self.plan.options, in_place=True)
            if self.plan.with_rewards:
                origin = pair.preferred if self.plan.options.source == "policy" else pair.preferred - pair.base
                reward += (pair.dense(origin) * gap).sum(-1)
            difference = pair.dense(pair.preferred - pair.dispreferred, in_place=True)
            margins.append(gap.mul_(difference).sum(-1))
            rewards.append(reward)
        return torch.cat(margins), torch.cat(rewards)


class _ChunkedMargin(ClosedForm):
    """Token margins with an analytical gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        reference_hidden: Tensor,
        reference_weight: Tensor,
        plan: Plan,
    ) -> tuple[Tensor, Tensor]:
        """Compute margins (N,) and, without a gradient, preferred rewards over beta (N,) chunk by chunk.

        Hidden states have the dtype of their projection; rewards are 0 unless the plan asks for them.
        """
        work = Workspace(plan, hidden, weight, (reference_hidden, reference_weight))
        count, explicit = len(hidden), plan.explicit(weight.dtype)
        differences = vocabulary_buffer(hidden, weight, plan.chunk_size, reference_weight)
        margins = torch.empty(count, dtype=differences.dtype, device=hidden.device)
        preferred = torch.zeros_like(margins)
        asked = not explicit or ctx.needs_input_grad[0]
        directions = torch.empty_like(hidden, dtype=differences.dtype) if asked else None
        scratch = None
        if explicit or not plan.shared:
            scratch = vocabulary_buffer(hidden, weight, work.size, reference_weight)
        for chunk in slices(count, plan.chunk_size):
            out = differences[: chunk.stop - chunk.start]
            insides: list[Inside] | None = [] if plan.with_rewards else None
            if explicit and scratch is not None:
                margins[chunk], preferred[chunk] = work.fill_and_compare(chunk, out, scratch)
            else:
                offset = work.fill(chunk, out, scratch, insides)
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

        def fill(chunk: slice, out: Tensor, hidden: Tensor, weight: Tensor, *reference: Tensor) -> None:
            Workspace(plan, hidden, weight, reference).fill(chunk, out)

        others = reference_hidden, reference_weight
        _ChunkedMargin.keep(ctx, hidden, weight, directions, differences, plan.chunk_size, fill, *others)
        ctx.mark_non_differentiable(preferred)
        return margins, preferred


def chunked_margin(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    options: PairOptions,
    chunk_size: int = 1024,
    with_rewards: bool = False,
    compare: bool = False,
) -> TokenMargins:
    """Compute the margin of each position from hidden states, and both rewards on request.

    In float32 with a centered memory vector and a small set, rewards cost almost nothing; otherwise they cost one
    projection of the policy (N V H).

    Args:
        hidden: (N, H) the policy's last hidden states (after the final norm) at the selected positions.
        weight: (V, H) the policy's output projection. Give the *same tensor* as `reference_weight` if the projection
            is frozen: the margin is then exactly 0 for equal hidden states.
        reference_hidden: (N, H_ref) the reference's last hidden states at the same positions.
        reference_weight: (V, H_ref) the reference's output projection.
        options: Source and form of the pair; logits of the policy are taken as constants.
        chunk_size: Number of positions whose vocabulary-sized values are in memory at the same time.
        with_rewards: Compute the rewards too.
        compare: Form the policy's logits beside the reference's (N V H more): margin and rewards are then exactly 0 if
            both models are equal, even if the projection is trained.

    Returns:
        (N,) each, float32 (float64 for float64 inputs). The margin is differentiable once in `hidden` and `weight`;
        rewards, over beta, have no gradient.

    Raises:
        InputError: Shapes or options do not fit.
    """
    check_numbers("", {"chunk_size": chunk_size})
    check_projection(hidden, weight, "policy")
    check_projection(reference_hidden, reference_weight, "reference")
    options.check_vocabulary(weight.shape[0])
    if len(hidden) != len(reference_hidden) or len(weight) != len(reference_weight):
        raise InputError(
            f"the policy has {len(hidden)} positions and {len(weight)} tokens, the reference {len(reference_hidden)} "
            f"and {len(reference_weight)}; both must be the same batch and vocabulary"
        )
    shared = reference_weight is weight and options.source == "reference"
    plan = Plan(options, chunk_size, with_rewards, shared, compare)
    policy = align(hidden, weight)
    reference = align(reference_hidden.detach(), reference_weight.detach())
    with torch.autocast(hidden.device.type, enabled=False):
        margin, preferred = _ChunkedMargin.apply(*policy, *reference, plan)
    return TokenMargins(margin, preferred, preferred - margin.detach()) if with_rewards else TokenMargins(margin)
