"""The reference model (a frozen copy of the policy before unlearning), live or cached.

A reference is kept outside the module tree, so that it is never trained, saved, clipped or counted; it therefore moves
itself to the device and is sharded separately.

| reference               | exact for              | costs                                             |
|-------------------------|------------------------|---------------------------------------------------|
| `LiveReference`         | everything             | a second model, a forward per step                |
| `AdaptersOffReference`  | everything, with LoRA  | a forward per step                                |
| `HiddenStatesReference` | forget and retain rows | a vector per token on disk, the output projection |

The option's fourth form, ``directions``, is DiPO's own (`dipo_lightning.methods.dipo.margins`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from dipo_lightning.data.loader import supervised_count
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.models.answers import (
    Answers,
    TokenBatch,
    answer_hidden,
    compute_answers,
    supervised_positions,
    used_lengths,
)
from dipo_lightning.models.distributed import is_sharded
from dipo_lightning.models.fingerprint import model_fingerprint
from dipo_lightning.models.head import Head, output_head, output_projection
from dipo_lightning.reference.cache import PositionCache, cache_key
from dipo_lightning.safety.paths import with_home

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


MOST_REMEMBERED = 2**31
"""Bytes of hidden states that a reference may keep in memory."""


class Reference(Protocol):
    """Outputs of the frozen model at the supervised positions of a batch, without a gradient."""

    def answers(
        self, parts: Mapping[str, TokenBatch], from_hidden: bool = True, chunk_size: int = 1024
    ) -> dict[str, Answers]:
        """Return the answers of the parts that the reference covers, with hidden states and head or with logits."""


class ModelReference:
    """Reference that is a model and runs forward passes; the base of the two below.

    Args:
        model: A ``transformers`` causal LM, sharded or not.
        dtype: Compute dtype of a sharded model; None otherwise.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.model, self.dtype = model, dtype
        self._memory: dict[tuple[int, ...], Tensor] | None = None
        self._room = 0
        self._head: Head | None = None

    def remember(self, most: int = MOST_REMEMBERED) -> None:
        """Keep the hidden states of each sequence from now on, for batches that repeat it.

        Sequences are then computed one by one, so that their rounding depends on nothing else and a resumed run has the
        same; on a CPU that takes hardly longer.

        Args:
            most: Maximum number of bytes to keep.
        """
        self._memory, self._room = {}, most

    def stop_remembering(self) -> None:
        """Compute the sequences of a batch together again, and free the memory."""
        self._memory = None

    def frozen(self) -> AbstractContextManager:
        """Return the context in which ``model`` is the reference."""
        return nullcontext()

    @torch.no_grad()
    def answers(
        self, parts: Mapping[str, TokenBatch], from_hidden: bool = True, chunk_size: int = 1024
    ) -> dict[str, Answers]:
        """Return the answers of all parts, computed together unless sequences are remembered.

        The rounding of a matrix product depends on its shape. On the forget rows alone the reference would differ from
        the policy's joint forward by rounding; on the same joint batch both are equal to the last bit until the first
        step.
        """

        def states(answers: dict[str, Answers]) -> dict[str, Tensor]:
            return {part: one.logits if one.hidden is None else one.hidden for part, one in answers.items()}

        with self.frozen():
            if from_hidden and self._memory is not None:
                found = {part: torch.cat(self._remembered(batch, self._memory)) for part, batch in parts.items()}
            else:
                found = compute_answers(self.model, parts, states, from_hidden=from_hidden)
        if not from_hidden:
            return {part: Answers(batch, part=part, _logits=found[part]) for part, batch in parts.items()}
        return {
            part: Answers(batch, found[part], self.head, part=part, chunk_size=chunk_size)
            for part, batch in parts.items()
        }

    def _remembered(self, batch: TokenBatch, memory: dict[tuple[int, ...], Tensor]) -> list[Tensor]:
        """Hidden states of each sequence, from memory, or else from a forward of that sequence alone."""
        found = []
        for row, end in enumerate(used_lengths(batch)):
            one = {name: batch[name][row : row + 1, :end] for name in ("input_ids", "attention_mask", "labels")}
            supervised = supervised_positions(one["labels"])
            key = tuple(torch.cat([one["input_ids"], one["attention_mask"], supervised]).flatten().tolist())
            hidden = memory.get(key)
            if hidden is None:
                hidden = answer_hidden(self.model, one)
                if hidden.nbytes <= self._room:
                    memory[key] = hidden
                    self._room -= hidden.nbytes
            found.append(hidden)
        return found

    @property
    def head(self) -> Head:
        """The whole head, on every rank and in the dtype that the model computes in."""
        if self._head is None:
            if is_sharded(self.model):
                self.model.reshard()  # gathered weights are views of a buffer that goes away
            head = output_head(self.model)
            bias = None if head.bias is None else whole(head.bias).to(self.dtype)
            self._head = replace(head, weight=whole(head.weight).to(self.dtype), bias=bias)
        return self._head


class LiveReference(ModelReference):
    """A second, frozen copy of the model; exact for every method, at the cost of its weights and a forward pass.

    Args:
        model: The copy; it is set to evaluation mode and frozen here.
        dtype: Compute dtype of a sharded model; None otherwise.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__(model.requires_grad_(False).eval(), dtype)

    def to(self, device: torch.device) -> LiveReference:
        """Move the copy to ``device`` (a sharded one is there already)."""
        self.model.to(device)
        return self


class AdaptersOffReference(ModelReference):
    """The policy itself with its LoRA adapters switched off: exact, and without extra memory.

    Args:
        model: The policy, a ``peft`` model whose base weights are frozen.
        dtype: Compute dtype of a sharded model; None otherwise.
    """

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Switch adapters and dropout off within a ``with`` block."""
        training = self.model.training
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.eval()
        try:
            with self.model.disable_adapter():  # type: ignore[operator]
                # peft also freezes the adapters, and FSDP2 fixes the dtype of gradients in the first forward pass by
                # the weights that are trainable then: it would reduce bfloat16 gradients for float32 weights.
                for parameter in trained:
                    parameter.requires_grad_(True)
                yield
        finally:
            self.model.train(training)


class CachedReference:
    """Base of references cached on disk: they hold the rows of one fit, computed with the policy before training."""


class HiddenStatesReference(CachedReference):
    """The reference's final hidden states from disk, and a frozen copy of its output projection.

    Args:
        caches: A complete cache of (N, H) hidden states for each part of a batch that the reference covers.
        projection: (V, H) output projection, frozen, on the device of the policy.
    """

    def __init__(self, caches: Mapping[str, PositionCache], projection: Tensor) -> None:
        self.caches, self.head = caches, Head(projection)

    def answers(
        self, parts: Mapping[str, TokenBatch], from_hidden: bool = True, chunk_size: int = 1024
    ) -> dict[str, Answers]:
        """Return the answers of the cached parts; their logits are exact for a purely linear head."""
        found = {}
        for part in self.caches.keys() & parts.keys():
            batch = parts[part]
            hidden = self.caches[part].read(batch["index"]).to(self.head.weight.dtype)
            form: Any = {"hidden": hidden, "head": self.head} if from_hidden else {"_logits": self.head(hidden)}
            found[part] = Answers(batch, part=part, chunk_size=chunk_size, **form)
        return found


def without_rounding(cached: Tensor, own: Tensor, size: Tensor | None = None) -> Tensor:
    """Return the policy's own values in place of cached ones before the first step, if both agree up to rounding.

    Until the first step the policy is the reference. The cached values are its own, but from other batches, whose
    matrix products round differently. With the policy's values the log-ratio is exactly 0.

    Args:
        cached: The reference's values, any shape.
        own: The policy's values, the same shape.
        size: Values whose norm the tolerance is relative to; default `own`.

    Returns:
        `own` without a gradient.

    Raises:
        RunError: They differ by more than half the digits of the dtype of the forward pass.
    """
    own = own.detach()
    kind = own.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else own.dtype
    norm = torch.linalg.vector_norm
    scale = own if size is None else size.detach()
    distance = float(norm((cached - own).float()) / norm(scale.float()))
    if distance > torch.finfo(dtype).eps ** 0.5:
        raise RunError(
            f"The reference cache and the policy differ by {distance:.1%} before the first step, where they are one "
            "model: the cache or the policy was changed. Delete the cache (model.reference_cache), or set "
            "model.reference: live."
        )
    return own


def whole(weight: Tensor) -> Tensor:
    """Return a weight without its gradient, gathered if it is sharded (collective)."""
    return weight.full_tensor().detach() if hasattr(weight, "full_tensor") else weight.detach()


CACHE_BATCH_SIZE = 8

MOST_CACHED, MOST_BYTES = 20_000, 8 * 2**30
"""Number of rows, and bytes of their hidden states, above which ``reference: auto`` uses no cache."""


def choose_reference(module: Any) -> tuple[str, str]:
    """Return the name of the reference to use, and why; an `InputError` if the requested one cannot be exact."""
    name, obstacle = module.reference_name, obstacle_to_caching(module)
    if name in ("hidden_states", "directions") and obstacle:
        raise InputError(f"model.reference is {name}, but {obstacle}. Use live or auto.")
    if name != "auto":
        return name, "asked for"
    if obstacle is None:
        return "hidden_states", "one cached vector per token instead of a second model"
    return ("live" if module.lora is None else "adapters_off"), obstacle


def obstacle_to_caching(module: Any) -> str | None:
    """Return the reason why the reference cannot be cached for this module and data, or None."""
    if not module.policy_is_pretrained:
        return "its cache is made with the policy, which is not the pretrained model any more"
    if module.head is None or not module.head.linear:
        return "the model's logits are not a plain product of hidden states and the output projection"
    parts = module.reference_parts
    if not {"forget", "retain"}.issuperset(parts):
        return f"the reference is asked for on these rows: {', '.join(parts)}"
    if "retain" in parts and module.retain_loss_name != "kl":
        return "the retain term needs more of the reference than its last hidden states"
    datamodule = getattr(module.trainer, "datamodule", None)
    examples: dict[str, Any] = {part: getattr(datamodule, f"{part}_examples", None) for part in parts}
    for part, found in examples.items():
        if found is None:
            return f"the data module has no {part}_examples to cache"
    return too_much_to_cache(module, examples) if module.reference_name == "auto" else None


def too_much_to_cache(module: Any, examples: Mapping[str, Any]) -> str | None:
    """Return the reason why a cache of these parts is not worth its time or space, or None."""
    rows = sum(map(len, examples.values()))
    if rows > MOST_CACHED:
        return f"caching {rows} rows would hold up the first step; hidden_states does"
    if "retain" in examples and (live := rows_of_a_live_reference(module.trainer)) < rows:
        return f"a cache needs forward passes of {rows} rows, a live model of {live} in the run; hidden_states caches"
    size = 4 * module.head.weight.shape[1] * sum(supervised_count(one) for part in examples.values() for one in part)
    if size > MOST_BYTES:
        return f"the cache would take {size / 1e9:.1f} GB; hidden_states caches"
    return None


def rows_of_a_live_reference(trainer: Any) -> float:
    """Return the number of forget and retain rows in the steps of a run; infinity if it is not known."""
    data, limits = trainer.datamodule, [math.inf]
    if (trainer.max_epochs or 0) > 0:
        limits.append(trainer.max_epochs * len(data.forget_examples))
    batch_size = getattr(data, "batch_size", None)  # a user's data module may have none
    if trainer.max_steps > 0 and batch_size:
        limits.append(trainer.max_steps * batch_size * trainer.accumulate_grad_batches * trainer.world_size)
    return 2 * min(limits)


def build_reference(module: Any, name: str) -> Reference:
    """Build the reference called ``name`` (any but ``directions``, which is specific to DiPO)."""
    assert module.policy is not None
    device = module.trainer.strategy.root_device
    if name == "adapters_off":
        return AdaptersOffReference(module.policy, module.forward_dtype if module.sharded else None)
    if name == "live":
        if not module.sharded:
            return LiveReference(module.prepare(module.load(), trainable=False)).to(device)
        # The policy computes with its weights rounded to this dtype, so the copy may be stored in it.
        dtype = module.forward_dtype
        return LiveReference(module.prepare(module.load(dtype), trainable=False), dtype)
    if name != "hidden_states":
        raise InputError(f"model.reference is {name}, which {type(module).__name__} cannot use; use live or auto.")
    return cached_states(module, module.reference_parts)


def cached_states(module: Any, parts: Sequence[str]) -> HiddenStatesReference:
    """Open the caches of the hidden states of some parts of a batch."""
    projection = whole(output_projection(module.policy))
    if module.sharded:
        projection = projection.to(module.forward_dtype)
    elif output_projection(module.policy).requires_grad:
        projection = projection.clone()
    width = projection.shape[1]
    caches = {part: open_cache(module, part, width, lambda hidden: hidden, kind="hidden_states") for part in parts}
    return HiddenStatesReference(caches, projection.to(module.trainer.strategy.root_device))


def open_cache(module: Any, part: str, width: int, compute: Callable[[Tensor], Tensor], **key: Any) -> PositionCache:
    """Open the cache of the forget or the retain rows, and compute its missing rows: all ranks together, once.

    They are computed with the policy, which is still the pretrained model (`obstacle_to_caching` has checked it): this
    runs before the first step, and before a checkpoint to resume from is restored.

    Args:
        module: The LightningModule, with its policy loaded.
        part: ``forget`` or ``retain``.
        width: Length of the vector of each position.
        compute: Returns (N, width) for hidden states (N, H); called without gradients.
        **key: Plain values that the vectors depend on besides data and weights.
    """
    trainer, strategy = module.trainer, module.trainer.strategy
    examples = getattr(trainer.datamodule, f"{part}_examples")
    key |= {
        "weights": module.weights_fingerprint,
        "precision": str(trainer.precision),
        "dtype": str(module.forward_dtype if module.sharded else torch.float32),
        "device": strategy.root_device.type,
    }
    if module.lora is not None and module.lora.base != "float32":
        key["base"] = module.lora.base
    cache = PositionCache(with_home(module.reference_cache), cache_key(examples, **key), examples, width)
    try:
        if trainer.is_global_zero:
            cache.claim()
        strategy.barrier()
        cache.open()
        strategy.barrier()  # every rank has seen the same rows missing before one is filled in
        if not cache.complete:
            refuse_other_weights(module)
            fill(module, cache, compute)
            strategy.barrier()
            if trainer.is_global_zero:
                cache.finish()
            strategy.barrier()
            cache.open()
    finally:
        cache.release()
    return cache


def refuse_other_weights(module: Any) -> None:
    """Raise a `RunError` if the policy is not the model that a cache will be named after; collective.

    Adapters rename the weights that they wrap, so a policy with adapters is not checked.
    """
    named = module.weights_fingerprint
    if named and module.lora is None and model_fingerprint(module.policy) != named:
        raise RunError(
            f"The policy of {type(module).__name__} is not {module.pretrained} as it was loaded: its weights or its "
            "configuration were changed since. A reference cache must be made with the loaded model; set "
            "model.reference: live."
        )


def fill(module: Any, cache: PositionCache, compute: Callable[[Tensor], Tensor]) -> None:
    """Compute the missing rows of a cache with the policy in evaluation mode; see `open_cache`."""
    policy, strategy = module.policy, module.trainer.strategy
    if not module.sharded:
        policy.to(strategy.root_device)

    def of_batch(batch: TokenBatch) -> Tensor:
        found = compute_answers(policy, {"cached": batch}, hidden_states, from_hidden=True)
        return compute(found["hidden"])

    policy.eval()
    with torch.no_grad(), strategy.precision_plugin.forward_context():
        cache.build(of_batch, CACHE_BATCH_SIZE, strategy.root_device)
    policy.train()
    if module.sharded:
        # A forward without a backward leaves the root gathered, and the optimiser would get those copies.
        policy.reshard()


def hidden_states(answers: dict[str, Answers]) -> dict[str, Tensor]:
    """Return the hidden states of the rows to cache, from within a forward pass."""
    hidden = answers["cached"].hidden
    assert hidden is not None
    return {"hidden": hidden}
