"""A name for the exact weights of a model, by which caches and logs know whose they are."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

_CHUNK = 1 << 26  # elements copied to the host at a time: 256 MB of float32


def model_fingerprint(model: nn.Module, trainable_only: bool = False) -> str:
    """Hash the names, shapes, dtypes and bytes of all parameters.

    About one second a gigabyte of weights. A tied weight counts once; buffers don't count. Of a model sharded over
    processes the whole parameters are gathered one by one, so every rank must call it, and all get the same answer.

    Args:
        model: Any model.
        trainable_only: Leave out parameters that are not trained.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A root stays gathered after its forward: in the dtype of the computation, and in a buffer that FSDP2 could
            # not free any more once NumPy had looked at it.
            module.reshard()
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if trainable_only and not parameter.requires_grad:
            continue
        tensor = parameter.detach()
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        for chunk in tensor.reshape(-1).split(_CHUNK):
            digest.update(memoryview(chunk.cpu().view(torch.uint8).numpy()))
    return digest.hexdigest()
