"""What stands for the frozen model (the policy before unlearning).

A reference is held outside the module tree, so that it is never trained, saved, clipped or counted; for the same
reason it moves itself to the device and is sharded by its own call.

| reference            | exact for                      | costs                                                        |
|----------------------|--------------------------------|--------------------------------------------------------------|
| `LiveReference`      | everything                     | a second model, a forward a step                             |
| `AdaptersOffReference` | everything, with LoRA        | a forward a step                                             |
| `HiddenStatesReference` | the forget rows             | a vector a token on disk, the output projection              |
| `DirectionsReference` | DiPO's margin, frozen projection | two vectors a token on disk, no vocabulary work |
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from dipo_lightning.errors import RunError
from dipo_lightning.models.answers import answer_logits, compute_answers, concatenate
from dipo_lightning.models.head import Head, output_head
from dipo_lightning.models.sharding import is_sharded
from dipo_lightning.models.token_batch import supervised_positions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dipo_lightning.models.token_batch import TokenBatch
    from dipo_lightning.reference.cache import PositionCache


class Reference(Protocol):
    """Gives the frozen model's view of the supervised positions of a token batch, without a gradient."""

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return (N, V) logits."""

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Return (N, H) final hidden states."""

    @property
    def projection(self) -> Tensor:
        """(V, H) output projection that goes with `hidden`."""


class ModelReference:
    """A reference that is a model and runs a forward; the base of the two below.

    Args:
        model: A ``transformers`` causal LM, sharded or not.
        dtype: What a sharded model computes in, if it is one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.model, self.dtype = model, dtype
        self._head: Head | None = None
        self._halves: list[TokenBatch] = []
        self._parts: dict[str, tuple[Tensor, ...]] = {}

    def expect(self, halves: Iterable[TokenBatch]) -> None:
        """Name the token batches that share the next forward of the policy; the reference will run on all of them.

        A matrix product rounds by its shape. On the forget rows alone the reference would be a rounding away from the
        policy's joint forward; on the same joint batch both are equal to the last bit until the first step.
        """
        self._halves, self._parts = list(halves), {}

    def frozen(self) -> AbstractContextManager:
        """Return the context in which ``model`` is the reference."""
        return nullcontext()

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        """Return (N, V) logits at the supervised positions."""
        return self.part("logits", batch, answer_logits)

    @torch.no_grad()
    def hidden(self, batch: TokenBatch) -> Tensor:
        """Return (N, H) final hidden states at the supervised positions."""
        return self.part("hidden", batch, hidden_states)

    @torch.no_grad()
    def part(self, name: str, batch: TokenBatch, run: Callable[[nn.Module, TokenBatch], Tensor]) -> Tensor:
        """Return what ``run`` gives for ``batch``, out of the joint forward where it is one of the halves.

        Args:
            name: What it is, so that several halves share one forward.
            batch: The token batch.
            run: Called with the model and a token batch, joint or not; gives a row a supervised position.
        """
        place = next((place for place, half in enumerate(self._halves) if half is batch), None)
        if place is None:
            with self.frozen():
                return run(self.model, batch)
        if name not in self._parts:
            counts = [int(supervised_positions(half["labels"]).sum()) for half in self._halves]
            with self.frozen():
                self._parts[name] = run(self.model, concatenate(self._halves)).split(counts)
        return self._parts[name][place]

    @property
    def projection(self) -> Tensor:
        """(V, H) output projection, whole on every rank and as the model computes with it."""
        return self.head.weight

    @property
    def head(self) -> Head:
        """The whole head, on every rank and as the model computes with it."""
        if self._head is None:
            if is_sharded(self.model):
                self.model.reshard()  # type: ignore[operator]  # gathered weights are views of a buffer that goes away
            head = output_head(self.model)
            bias = None if head.bias is None else whole(head.bias).to(self.dtype)
            self._head = replace(head, weight=whole(head.weight).to(self.dtype), bias=bias)
        return self._head


class LiveReference(ModelReference):
    """A second copy of the model, frozen; exact for every method, at the price of its weights and a forward.

    Args:
        model: The copy; it is set to evaluation mode and frozen here.
        dtype: What a sharded model computes in, if it is one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__(model.requires_grad_(False).eval(), dtype)

    def to(self, device: torch.device) -> LiveReference:
        """Move the copy to ``device`` (a sharded one is there already)."""
        self.model.to(device)
        return self


class AdaptersOffReference(ModelReference):
    """The policy itself with its LoRA adapters switched off: exact, and without a byte of memory.

    Args:
        model: The policy, a ``peft`` model whose base weights are frozen.
        dtype: What a sharded model computes in, if it is one.
    """

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Switch adapters and dropout off for the length of a block."""
        training = self.model.training
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.eval()
        try:
            with self.model.disable_adapter():  # type: ignore[operator]
                # peft also freezes the adapters, and FSDP2 settles the dtype of gradients in the first forward, by
                # what is trainable then: it would reduce bfloat16 gradients for float32 weights.
                for parameter in trained:
                    parameter.requires_grad_(True)
                yield
        finally:
            self.model.train(training)


class CachedReference:
    """Reads what a `PositionCache` holds; it knows the forget rows only, and refuses others.

    Args:
        cache: A complete cache over the forget rows.

    Raises:
        RunError: The cache is not complete.
    """

    def __init__(self, cache: PositionCache) -> None:
        if not cache.complete:
            raise RunError(f"The cache {cache.folder} is not complete; run again to finish it.")
        self.cache = cache


class HiddenStatesReference(CachedReference):
    """The reference's final hidden states from disk, and a frozen copy of its output projection.

    Args:
        cache: (N, H) hidden states of the forget rows.
        projection: (V, H) output projection, frozen, on the device of the policy.
    """

    def __init__(self, cache: PositionCache, projection: Tensor) -> None:
        super().__init__(cache)
        self.projection = projection

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Return (N, H) cached hidden states in the dtype of the projection."""
        return self.cache.read(batch["index"]).to(self.projection.dtype)

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return (N, V) logits; exact for a purely linear head."""
        return self.hidden(batch) @ self.projection.T


class DirectionsReference(CachedReference):
    """DiPO's margin from one dot product a position: no reference model and no vocabulary-sized work.

    Exact while the output projection does not change (derived in `dipo_lightning.methods.dipo.directions`).

    Args:
        cache: (N, 2H + 2): preferred and dispreferred direction, and their two offsets.
    """

    def directions(self, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return g_preferred, g_dispreferred (N, H) and c_preferred, c_dispreferred (N,), float32."""
        values = self.cache.read(batch["index"])
        width = (values.shape[1] - 2) // 2
        return values[:, :width], values[:, width : 2 * width], values[:, -2], values[:, -1]

    def logits(self, batch: TokenBatch) -> Tensor:
        """Refuse: directions hold no logits."""
        raise RunError("reference: directions holds no logits; a method that asks for them needs reference: live.")

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Refuse: directions hold no hidden states."""
        raise RunError("reference: directions holds no hidden states; use reference: hidden_states.")

    @property
    def projection(self) -> Tensor:
        """Refuse: directions hold no projection."""
        raise RunError("reference: directions holds no projection; use reference: hidden_states.")


def hidden_states(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return (N, H) final hidden states of ``model`` at the supervised positions, sharded or not."""
    return compute_answers(model, {"all": batch}, lambda halves: {"hidden": halves["all"].hidden}, from_hidden=True)[  # type: ignore[dict-item]
        "hidden"
    ]


def without_rounding(cached: Tensor, own: Tensor, size: Tensor | None = None) -> Tensor:
    """Return what the policy itself says before the first step, where a cache says the same up to rounding.

    Until then the policy is the reference, and the cached values are its own, computed in other batches: a matrix
    product rounds by its shape. Taken from the policy, the log-ratio is exactly 0. A policy that someone has changed
    meanwhile is not within rounding, and keeps the cached values.

    Args:
        cached: The reference's values, any shape.
        own: The policy's in their place, the same shape.
        size: Values whose norm the rounding is relative to; default `own`.

    Returns:
        `own` without a gradient, or `cached`: they are one if they differ by less than half the digits of the dtype in
        which the forward computes.
    """
    own = own.detach()
    kind = own.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else own.dtype
    distance = torch.linalg.vector_norm((cached - own).float())
    near = distance <= torch.finfo(dtype).eps ** 0.5 * torch.linalg.vector_norm((own if size is None else size).float())
    return own if near else cached


def whole(weight: Tensor) -> Tensor:
    """Return a weight without its gradient, gathered where it is sharded (collective)."""
    return weight.full_tensor().detach() if hasattr(weight, "full_tensor") else weight.detach()
