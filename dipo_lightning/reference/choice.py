"""Which reference an unlearning module uses, and how it is made: the cheapest that is exact, unless one is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.models.head import output_projection
from dipo_lightning.models.token_batch import TokenBatch
from dipo_lightning.reference.cache import PositionCache, cache_key
from dipo_lightning.reference.references import (
    AdaptersOffReference,
    HiddenStatesReference,
    LiveReference,
    Reference,
    hidden_states,
    whole,
)

CACHE_BATCH_SIZE = 8


class PolicyOwner(Protocol):
    """LightningModule that trains a policy against a reference: what `build_reference` asks of it."""

    policy: Any
    trainer: Any
    lora: Any
    reference_cache: str
    weights_fingerprint: str

    @property
    def reference_name(self) -> str:
        """Name of the reference that was asked for, or ``auto``."""

    @property
    def reference_halves(self) -> list[str]:
        """Parts of a batch that the reference is asked for."""

    @property
    def head_is_linear(self) -> bool:
        """Whether the logits are exactly hidden states times the output projection."""

    @property
    def forward_dtype(self) -> torch.dtype:
        """Dtype that a sharded model computes in."""

    @property
    def sharded(self) -> bool:
        """Whether the policy is sharded."""

    def load(self, dtype: torch.dtype = torch.float32) -> Any:
        """Load the pretrained model."""

    def prepare(self, model: Any, lora: Any = None, trainable: bool = True) -> Any:
        """Add adapters, checkpointing, compilation and sharding."""


def choose_reference(module: PolicyOwner) -> tuple[str, str]:
    """Return the name of the reference to use, and why it is that one.

    Raises:
        InputError: The one asked for cannot be exact here.
    """
    name, obstacle = module.reference_name, obstacle_to_caching(module)
    if name in ("hidden_states", "directions") and obstacle:
        raise InputError(f"model.reference is {name}, but {obstacle}. Use live or auto.")
    if name != "auto":
        return name, "asked for"
    if obstacle is None:
        return "hidden_states", "one cached vector a token instead of a second model"
    return ("live" if module.lora is None else "adapters_off"), obstacle


def obstacle_to_caching(module: PolicyOwner) -> str | None:
    """Return why the reference cannot be cached for this module and data, or None."""
    if not module.head_is_linear:
        return "the model's logits are not a plain product of hidden states and the output projection"
    if module.reference_halves != ["forget"]:
        return f"the reference is asked for on these rows: {', '.join(module.reference_halves)}"
    if getattr(getattr(module.trainer, "datamodule", None), "forget_examples", None) is None:
        return "the data module has no forget_examples to cache"
    return None


def build_reference(module: PolicyOwner, name: str) -> Reference:
    """Build the reference called ``name`` (all but ``directions``, which is DiPO's own)."""
    assert module.policy is not None
    device = module.trainer.strategy.root_device
    if name == "adapters_off":
        return AdaptersOffReference(module.policy, module.forward_dtype if module.sharded else None)
    if name == "live":
        if not module.sharded:
            return LiveReference(module.prepare(module.load(), trainable=False)).to(device)
        # What the policy computes with is its weights rounded to this dtype: the copy may be stored in it.
        dtype = module.forward_dtype
        return LiveReference(module.prepare(module.load(dtype), trainable=False), dtype)
    if name != "hidden_states":
        raise InputError(f"model.reference is {name}, which {type(module).__name__} cannot use; use live or auto.")
    projection = whole(output_projection(module.policy))
    if module.sharded:
        projection = projection.to(module.forward_dtype)
    elif output_projection(module.policy).requires_grad:
        projection = projection.clone()
    policy = module.policy
    cache = open_cache(module, projection.shape[1], lambda batch: hidden_states(policy, batch), kind=name)
    return HiddenStatesReference(cache, projection.to(device))


def open_cache(
    module: PolicyOwner,
    width: int,
    compute: Callable[[TokenBatch], Tensor],
    **key: Any,
) -> PositionCache:
    """Open the cache of the forget rows, and compute what is missing of it: all ranks together, once.

    The policy is the reference until its first step; this runs before a checkpoint is restored into it.

    Args:
        module: The module, with its policy loaded.
        width: Numbers a position.
        compute: Gives (N, width) for a token batch; called without gradients, in evaluation mode.
        **key: What the numbers depend on besides data and weights; plain values.
    """
    assert module.policy is not None
    trainer, strategy = module.trainer, module.trainer.strategy
    examples = trainer.datamodule.forget_examples
    key |= {
        "weights": module.weights_fingerprint,
        "precision": str(trainer.precision),
        "dtype": str(module.forward_dtype if module.sharded else torch.float32),
        "device": strategy.root_device.type,
    }
    cache = PositionCache(Path(module.reference_cache), cache_key(examples, **key), examples, width)
    if trainer.is_global_zero:
        cache.create()
    strategy.barrier()
    cache.open()
    strategy.barrier()  # every rank has seen the same rows missing before one is filled in
    if not cache.complete:
        if not module.sharded:
            module.policy.to(strategy.root_device)
        module.policy.eval()
        with torch.no_grad(), strategy.precision_plugin.forward_context():
            cache.build(compute, CACHE_BATCH_SIZE, strategy.root_device)
        module.policy.train()
        if module.sharded:
            # A forward without a backward leaves the root gathered, and the optimiser would get those copies.
            module.policy.reshard()
        strategy.barrier()
        cache.open()
    return cache
