"""Computation of the margin of each position: one exact way for every pair and head, and two accelerated ones.

`choose_margins` picks one when the model and the reference are known. `ExactMargins` is always valid: it makes the pair
from logits, a few positions at a time. `SparseMargins` and `CachedMargins` compute only the package's own pair; their
`holds` tells whether they are valid for a module, and tests compare them with `ExactMargins`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.losses.chunking import working_dtype
from dipo_lightning.methods.dipo.directions import Directions, directions, margin_from_directions
from dipo_lightning.methods.dipo.kernels import chunked_margin
from dipo_lightning.methods.dipo.loss import TokenMargins, token_margins
from dipo_lightning.methods.dipo.pair import pair_parts
from dipo_lightning.models.answers import Answers, TokenBatch, over_logits
from dipo_lightning.models.head import output_projection
from dipo_lightning.reference.cache import PositionCache
from dipo_lightning.reference.references import (
    CachedReference,
    HiddenStatesReference,
    cached_states,
    obstacle_to_caching,
    open_cache,
    whole,
    without_rounding,
)


class Margins(Protocol):
    """Strategy that computes margins for a `DiPOModule`."""

    def read(self, forget: TokenBatch) -> None:
        """Read further inputs of the margin before the policy's forward pass."""

    def __call__(self, forget: Answers) -> TokenMargins:
        """Return the margin of each position, and the rewards if they are due."""


class ExactMargins:
    """Margins of any pair and any head, from the logits of both models, in chunks of positions.

    Args:
        module: The `DiPOModule`, whose `make_pair` defines the pair.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.parts = self.fast_parts if module.has_own_pair else self.parts_of_pair
        self.checked = False

    def read(self, forget: TokenBatch) -> None:
        """Read nothing: the module has the reference's answers."""

    def __call__(self, forget: Answers) -> TokenMargins:
        """Return margins and rewards from logits."""

        def margins(positions: Tensor, policy: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
            base = reference if self.module.pair.source == "reference" else policy
            parts = self.parts(base.detach(), reference, forget.at(positions))
            return tuple(token_margins(*parts, policy, reference))  # type: ignore[arg-type]

        return TokenMargins(*over_logits(margins, forget, self.module.reference_answers(forget)))

    def parts_of_pair(self, base: Tensor, reference: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        """Return both distributions of the module's pair minus the reference's, (n, V) each."""
        base = base.to(working_dtype(base))
        pair = self.module.make_pair(base, forget)
        if not self.checked:
            check_pair(type(self.module), pair, base)
            self.checked = len(base) > 0
        log_preferred, log_dispreferred = (log_p.detach().to(working_dtype(log_p)) for log_p in pair)
        start = reference.detach().to(log_preferred.dtype).softmax(-1)
        return log_preferred.exp() - start, log_dispreferred.exp() - start

    def fast_parts(self, base: Tensor, reference: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        """Return what `parts_of_pair` does, for the package's own pair and with one softmax."""
        options = self.module.pair
        return pair_parts(base, options, None if options.source == "reference" else reference)


def check_pair(cls: type, pair: Any, base: Tensor) -> None:
    """Raise an `InputError` unless a pair is two tensors of log-probabilities of the shape of the base logits (n, V).

    Their sums are checked only roughly, for those in bfloat16, and not where a base logit is NaN.
    """
    parts = pair if isinstance(pair, tuple | list) else [pair]
    shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in parts]
    if shapes != [tuple(base.shape)] * 2:
        found = f"returns {shapes}, which are not two tensors of the shape {tuple(base.shape)} of the logits"
    elif not all(bool(((one.float().logsumexp(-1).abs() < 0.05) | base.isnan().any(-1)).all()) for one in parts):
        found = "returns values whose exponentials do not sum to 1 at each position"
    else:
        return
    raise InputError(
        f"{cls.__name__}.make_pair() {found}. Return the log-probabilities of the preferred and of the dispreferred "
        "distribution: scores.log_softmax(-1) of each."
    )


class SparseMargins:
    """Margins of the package's own pair under a purely linear head, by a kernel without full policy logits."""

    def __init__(self, module: Any) -> None:
        self.module = module
        # After a checkpoint was restored, even a frozen projection may differ from the reference's.
        self.trained = output_projection(module.policy).requires_grad or not module.policy_is_pretrained

    @staticmethod
    def holds(module: Any) -> bool:
        """Return whether the sparse kernel computes this module's margins."""
        return module.has_own_pair and module.from_hidden and module.head.linear

    def read(self, forget: TokenBatch) -> None:
        """Read nothing: the module has the reference's answers."""

    def __call__(self, forget: Answers) -> TokenMargins:
        """Return margins, and at the first step and at logged steps also the rewards."""
        module, frozen = self.module, self.module.reference_answers(forget)
        weight = forget.head.weight  # type: ignore[union-attr]
        # A frozen projection is the reference's own; passing one tensor for both makes the margin of equal states 0.
        inputs: tuple[Any, Any, Any, Any] = (
            forget.hidden,
            weight,
            frozen.hidden,
            frozen.head.weight if self.trained else weight,
        )
        first = module.trainer.global_step == 0  # the policy is the reference: make the margin 0, not rounding noise
        due = first or module.logs_are_due
        return chunked_margin(*inputs, module.pair, module.chunk_size, with_rewards=due, compare=first)


class DirectionsReference(CachedReference):
    """DiPO's margin from one dot product per position: no reference model and no vocabulary-sized work.

    Exact while the output projection does not change (derived in `dipo_lightning.methods.dipo.directions`).

    Args:
        cache: A complete cache of (N, 2H + 2): preferred and dispreferred direction, and their two offsets.
        retain: The reference for the retain rows, if their term needs one.
    """

    def __init__(self, cache: PositionCache, retain: HiddenStatesReference | None = None) -> None:
        self.cache, self.retain = cache, retain

    def directions(self, batch: TokenBatch) -> Directions:
        """Return the directions of the forget rows of a batch, float32."""
        values = self.cache.read(batch["index"])
        width = (values.shape[1] - 2) // 2
        return Directions(values[:, :width], values[:, width : 2 * width], values[:, -2], values[:, -1])

    def answers(
        self, parts: Mapping[str, TokenBatch], from_hidden: bool = True, chunk_size: int = 1024
    ) -> dict[str, Answers]:
        """Return the retain rows' answers, if any: directions hold neither logits nor hidden states."""
        return {} if self.retain is None else self.retain.answers(parts, from_hidden, chunk_size)


class CachedMargins:
    """Margins of the package's own pair under a frozen linear head: one dot product per position, with a cached vector.

    Args:
        module: The `DiPOModule`, whose reference is a `DirectionsReference`.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.directions: tuple[Tensor, ...] = ()

    @staticmethod
    def holds(module: Any) -> bool:
        """Return whether cached directions give this module's margins."""
        frozen = not output_projection(module.policy).requires_grad
        from_reference = module.pair.source == "reference"
        return frozen and from_reference and SparseMargins.holds(module) and obstacle_to_caching(module) is None

    def read(self, forget: TokenBatch) -> None:
        """Read the directions of the batch."""
        self.directions = self.module.frozen_reference.directions(forget)

    def __call__(self, forget: Answers) -> TokenMargins:
        """Return margins and rewards from hidden states."""
        hidden: Any = forget.hidden
        found = []
        for vector, offset in zip(self.directions[:2], self.directions[2:], strict=True):
            reward = margin_from_directions(hidden, vector)
            if self.module.at_start:
                size = torch.linalg.vector_norm(vector, dim=-1) * torch.linalg.vector_norm(hidden, dim=-1)
                offset = without_rounding(offset, reward, size)
            found.append(reward - offset.to(reward.dtype))
        return TokenMargins(found[0] - found[1], *found)


def choose_margins(module: Any) -> Margins:
    """Choose the cheapest exact way for a module whose policy and reference are loaded."""
    if isinstance(module.frozen_reference, DirectionsReference):
        return CachedMargins(module)
    return SparseMargins(module) if SparseMargins.holds(module) else ExactMargins(module)


def cache_directions(module: Any) -> DirectionsReference:
    """Open the cache of directions and offsets of every forget position, and the caches that the retain term needs."""
    rank_zero_info("reference: directions (the output projection is frozen)")
    projection = whole(output_projection(module.policy)).to(module.trainer.strategy.root_device)

    def compute(hidden: Tensor) -> Tensor:
        found = directions(hidden, projection, projection, module.pair, module.chunk_size)
        offsets = torch.stack([found.preferred_offset, found.dispreferred_offset], -1)
        return torch.cat([found.preferred, found.dispreferred, offsets], -1)

    key = {"kind": "directions", "pair": vars(module.pair)}
    cache = open_cache(module, "forget", 2 * projection.shape[1] + 2, compute, **key)
    kept = [part for part in module.reference_parts if part != "forget"]
    return DirectionsReference(cache, cached_states(module, kept) if kept else None)
