"""Choice and making of the reference that an unlearning module uses: the cheapest exact one, unless one is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.models.answers import Answers, compute_answers
from dipo_lightning.models.head import output_projection
from dipo_lightning.models.token_batch import TokenBatch
from dipo_lightning.reference.cache import PositionCache, cache_key
from dipo_lightning.reference.references import (
    AdaptersOffReference,
    HiddenStatesReference,
    LiveReference,
    Reference,
    whole,
)

CACHE_BATCH_SIZE = 8

MOST_CACHED = 20_000
"""Forget rows above which ``reference: auto`` caches none: all of them would be computed before the first step."""


def choose_reference(module: Any) -> tuple[str, str]:
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
        return "hidden_states", "one cached vector per token instead of a second model"
    return ("live" if module.lora is None else "adapters_off"), obstacle


def obstacle_to_caching(module: Any) -> str | None:
    """Return why the reference cannot be cached for this module and data, or None."""
    if module.head is None or not module.head.linear:
        return "the model's logits are not a plain product of hidden states and the output projection"
    if module.reference_parts != ["forget"]:
        return f"the reference is asked for on these rows: {', '.join(module.reference_parts)}"
    examples = getattr(getattr(module.trainer, "datamodule", None), "forget_examples", None)
    if examples is None:
        return "the data module has no forget_examples to cache"
    if module.reference_name == "auto" and len(examples) > MOST_CACHED:
        return f"caching {len(examples)} forget rows would hold up the first step; hidden_states does"
    return None


def build_reference(module: Any, name: str) -> Reference:
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
    cache = open_cache(module, projection.shape[1], lambda hidden: hidden, kind=name)
    return HiddenStatesReference(cache, projection.to(device))


def open_cache(module: Any, width: int, compute: Callable[[Tensor], Tensor], **key: Any) -> PositionCache:
    """Open the cache of the forget rows, and compute what is missing of it: all ranks together, once.

    The policy is the reference until its first step; this runs before a checkpoint is restored into it.

    Args:
        module: The LightningModule, with its policy loaded.
        width: Numbers per position.
        compute: Gives (N, width) for hidden states (N, H); called without gradients.
        **key: What the numbers depend on besides data and weights; plain values.
    """
    trainer, strategy = module.trainer, module.trainer.strategy
    examples = trainer.datamodule.forget_examples
    key |= {
        "weights": module.weights_fingerprint,
        "precision": str(trainer.precision),
        "dtype": str(module.forward_dtype if module.sharded else torch.float32),
        "device": strategy.root_device.type,
    }
    if module.lora is not None and module.lora.base != "float32":
        key["base"] = module.lora.base
    cache = PositionCache(Path(module.reference_cache).expanduser(), cache_key(examples, **key), examples, width)
    try:
        if trainer.is_global_zero:
            cache.claim()
        strategy.barrier()
        cache.open()
        strategy.barrier()  # every rank has seen the same rows missing before one is filled in
        if not cache.complete:
            fill(module, cache, compute)
            strategy.barrier()
            if trainer.is_global_zero:
                cache.finish()
            strategy.barrier()
            cache.open()
    finally:
        cache.release()
    return cache


def fill(module: Any, cache: PositionCache, compute: Callable[[Tensor], Tensor]) -> None:
    """Compute the missing rows of a cache with the policy in evaluation mode; arguments as for `open_cache`."""
    policy, strategy = module.policy, module.trainer.strategy
    if not module.sharded:
        policy.to(strategy.root_device)

    def of_batch(batch: TokenBatch) -> Tensor:
        found = compute_answers(policy, {"forget": batch}, hidden_states, from_hidden=True)
        return compute(found["hidden"])

    policy.eval()
    with torch.no_grad(), strategy.precision_plugin.forward_context():
        cache.build(of_batch, CACHE_BATCH_SIZE, strategy.root_device)
    policy.train()
    if module.sharded:
        # A forward without a backward leaves the root gathered, and the optimiser would get those copies.
        policy.reshard()


def hidden_states(answers: dict[str, Answers]) -> dict[str, Tensor]:
    """Return the hidden states of the forget rows, from within a forward."""
    hidden = answers["forget"].hidden
    assert hidden is not None
    return {"hidden": hidden}
