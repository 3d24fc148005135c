"""The vocabulary-sized work of the chunked margin: d = preferred - dispreferred, and what is measured with it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dipo_lightning.objectives.factored import factor
from dipo_lightning.objectives.options import PairOptions
from dipo_lightning.objectives.pair import working_dtype
from dipo_lightning.objectives.projection import piece_size, project, slices

Source = Literal["reference", "policy"]


class Plan(NamedTuple):
    """What is fixed for one call."""

    options: PairOptions
    chunk_size: int
    source: Source
    with_rewards: bool
    shared: bool

    def explicit(self, dtype: torch.dtype) -> bool:
        """Whether policy logits are formed.

        They are for rewards and for pairs made from them, and in half precision: there both logits must be rounded
        alike, so that the margin is exactly 0 where the policy is the reference.
        """
        half = dtype not in (torch.float32, torch.float64)
        return self.source == "policy" or self.with_rewards or (half and not self.shared)


class Workspace:
    """Buffers and tensors of one pass over the positions."""

    def __init__(self, plan: Plan, hidden: Tensor, weight: Tensor, reference: tuple[Tensor, Tensor]) -> None:
        self.plan, self.hidden, self.weight, self.reference = plan, hidden, weight, reference
        self.dtype = working_dtype(weight, reference[1])
        self.size = piece_size(hidden.device, plan.chunk_size)

    def buffer(self, count: int) -> Tensor:
        """Make an uninitialised (count, V) buffer."""
        return torch.empty(count, self.weight.shape[0], dtype=self.dtype, device=self.hidden.device)

    def fill(self, chunk: slice, out: Tensor) -> None:
        """Write the differences d of a chunk into `out` (n, V), nothing else."""
        source = (self.hidden, self.weight) if self.plan.source == "policy" else self.reference
        for piece in slices(len(out), self.size):
            logits = project(source[0][chunk][piece], source[1], out[piece])
            pair = factor(logits, self.plan.options, in_place=True)
            pair.dense(pair.preferred - pair.dispreferred, in_place=True)

    def fill_and_measure(self, chunk: slice, out: Tensor, scratch: Tensor) -> Tensor:
        """Write d into `out` and measure <d, h_ref> of the reference's logits.

        Returns:
            (n,).
        """
        values = []
        for piece in slices(len(out), self.size):
            logits = project(self.reference[0][chunk][piece], self.reference[1], out[piece])
            kept = scratch[: len(logits)].copy_(logits)
            pair = factor(logits, self.plan.options, in_place=True)
            difference = pair.dense(pair.preferred - pair.dispreferred, in_place=True)
            values.append(kept.mul_(difference).sum(-1))
        return torch.cat(values)

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
            if self.plan.source == "policy":
                base = gap.clone()
                gap.sub_(logits)
                if self.plan.with_rewards:
                    reward = -(logits.softmax(-1) * gap).sum(-1)
                logits.copy_(base)
            else:
                gap.sub_(logits)
            pair = factor(logits, self.plan.options, in_place=True)
            if self.plan.with_rewards:
                origin = pair.preferred if self.plan.source == "policy" else pair.preferred - pair.base
                reward += (pair.dense(origin) * gap).sum(-1)
            difference = pair.dense(pair.preferred - pair.dispreferred, in_place=True)
            margins.append(gap.mul_(difference).sum(-1))
            rewards.append(reward)
        return torch.cat(margins), torch.cat(rewards)
