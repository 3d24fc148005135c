"""The vocabulary-sized work of the chunked margin: d = preferred - dispreferred, and what is measured with it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dipo_lightning.objectives.factored import FactoredPair, factor
from dipo_lightning.objectives.options import PairOptions
from dipo_lightning.objectives.pair import working_dtype
from dipo_lightning.objectives.projection import piece_size, project, slices

Source = Literal["reference", "policy"]
_FEW = 16


class Plan(NamedTuple):
    """What is fixed for one call."""

    options: PairOptions
    chunk_size: int
    source: Source
    with_rewards: bool
    shared: bool
    compare: bool = False

    def explicit(self, dtype: torch.dtype) -> bool:
        """Whether policy logits are formed.

        They are for pairs made from them and for most rewards; and where both logits must be rounded alike, so that the
        margin is exactly 0 where the policy is the reference: in half precision, or where it is asked for.
        """
        half = dtype not in (torch.float32, torch.float64)
        options = self.options
        few = options.selection == "top_k" and options.k <= _FEW and options.memory_vector == "centered"
        dear = self.with_rewards and (half or not few)  # else they follow from the margin: see `Inside`
        return self.source == "policy" or dear or ((half or self.compare) and not self.shared)


class Inside(NamedTuple):
    """What the preferred reward takes beside the margin, in exchange for the policy's projection.

    Outside the M tokens of the confident set, both differences are a multiple of one distribution: with o for it,

        margin    = (m_w - m_l) <o, gap> + sum_i (w_i - l_i) gap_i
        preferred = (m_w - m_b) <o, gap> + sum_i (w_i - b_i) gap_i

    where m is the mass outside, and w, l, b the probabilities of preferred, dispreferred and base. So <o, gap> follows
    from the margin, and of the policy's logits only those of the set are asked for.

    Attributes:
        indices: (n, M) int64 the tokens of the set.
        logits: (n, M) the reference's logits on them.
        share: (n,) (m_w - m_b) / (m_w - m_l), which lies in [0, 1] for a centered memory vector.
        weights: (n, M) w - b - share * (w - l).
    """

    indices: Tensor
    logits: Tensor
    share: Tensor
    weights: Tensor

    def preferred(self, margin: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        """Compute the preferred reward over beta (n,) from the margin (n,) and hidden states (n, H)."""
        logits = torch.einsum("nmh,nh->nm", weight[self.indices], hidden)
        return self.share * margin + (self.weights * (logits - self.logits)).sum(-1)


def _inside(pair: FactoredPair) -> Inside:
    """Take what `Inside` holds out of a pair."""
    towards, whole = pair.preferred - pair.base, pair.preferred - pair.dispreferred
    share = torch.where(whole.mass == 0, 0, towards.mass / whole.mass)
    return Inside(pair.indices, pair.logits, share.squeeze(-1), towards.values - share * whole.values)


class Workspace:
    """Buffers and tensors of one pass over the positions."""

    def __init__(self, plan: Plan, hidden: Tensor, weight: Tensor, reference: tuple[Tensor, Tensor]) -> None:
        self.plan, self.hidden, self.weight, self.reference = plan, hidden, weight, reference
        self.dtype = working_dtype(weight, reference[1])
        self.size = piece_size(hidden.device, plan.chunk_size)

    def buffer(self, count: int) -> Tensor:
        """Make an uninitialised (count, V) buffer."""
        return torch.empty(count, self.weight.shape[0], dtype=self.dtype, device=self.hidden.device)

    def fill(self, chunk: slice, out: Tensor, insides: list[Inside] | None = None) -> None:
        """Write the differences d of a chunk into `out` (n, V), and append each piece's `Inside` where asked."""
        source = (self.hidden, self.weight) if self.plan.source == "policy" else self.reference
        for piece in slices(len(out), self.size):
            logits = project(source[0][chunk][piece], source[1], out[piece])
            pair = factor(logits, self.plan.options, in_place=True)
            if insides is not None:
                insides.append(_inside(pair))
            pair.dense(pair.preferred - pair.dispreferred, in_place=True)

    def fill_and_measure(
        self, chunk: slice, out: Tensor, scratch: Tensor, insides: list[Inside] | None = None
    ) -> Tensor:
        """Write d into `out` and measure <d, h_ref> of the reference's logits; `insides` as for `fill`.

        Returns:
            (n,).
        """
        values = []
        for piece in slices(len(out), self.size):
            logits = project(self.reference[0][chunk][piece], self.reference[1], out[piece])
            kept = scratch[: len(logits)].copy_(logits)
            pair = factor(logits, self.plan.options, in_place=True)
            if insides is not None:
                insides.append(_inside(pair))
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
