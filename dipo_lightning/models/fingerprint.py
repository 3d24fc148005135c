"""Fingerprint of the exact function that a model computes, which ties caches, checkpoints and logs to the model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dipo_lightning.models.distributed import is_sharded, is_spread
from dipo_lightning.models.head import causal_lm

_CHUNK = 1 << 26  # elements copied to the host at a time: 256 MB of float32

_NOT_COMPUTED = re.compile(
    r"_.*|.*_token_id|.*_token_index|architectures|auto_map|transformers_version|dtype|torch_dtype|use_cache|return_dict"
    r"|output_(attentions|hidden_states|router_logits|scores)|id2label|label2id|num_labels|problem_type|initializer_.*"
    r"|name_or_path|quantization_config|task_specific_params"
)
"""Fields of a configuration that do not affect the logits: names, versions, storage, initial values."""


def model_fingerprint(model: nn.Module, trainable_only: bool = False) -> str:
    """Hash everything that determines a model's logits: its parameters, buffers and configuration.

    Names, shapes, dtypes and bytes of the tensors count; a tied weight counts once. The configuration counts without
    names, versions and storage, so another ``rope_theta`` makes another model and another folder does not. It takes
    about one second per gigabyte. The tensors of a sharded model are gathered one by one, so every rank must call it,
    and all get the same result.

    Args:
        model: Any model.
        trainable_only: Hash only the trained parameters.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    for module in model.modules():
        if is_sharded(module):
            # A root stays gathered after its forward pass: in the compute dtype, and in a buffer that FSDP2 could not
            # free any more once NumPy has taken a view of it.
            module.reshard()
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad or not trainable_only:
            _add(digest, name, parameter.detach())
    if not trainable_only:
        for name, buffer in sorted(model.named_buffers()):
            _add(digest, f"buffer {name}", buffer)
        digest.update(json.dumps(computation(model), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def computation(model: nn.Module) -> Any:
    """Return the fields of a model's configuration that its logits depend on, as plain values; None without one."""
    config = getattr(causal_lm(model), "config", None)
    return None if config is None else _computed(config.to_dict())


def _computed(value: Any) -> Any:
    """Drop the fields that do not affect the logits, and turn integers into floats, so that 10000 equals 10000.0."""
    if isinstance(value, Mapping):
        kept = {str(key): _computed(item) for key, item in value.items() if not _NOT_COMPUTED.fullmatch(str(key))}
        return {key: item for key, item in kept.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_computed(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _add(digest: Any, name: str, tensor: torch.Tensor) -> None:
    if is_spread(tensor):
        tensor = tensor.full_tensor()
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    for chunk in tensor.reshape(-1).split(_CHUNK):
        digest.update(memoryview(chunk.cpu().view(torch.uint8).numpy()))
