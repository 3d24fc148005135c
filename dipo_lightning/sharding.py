"""Fully sharded data parallelism (torch's FSDP2) under Lightning: the strategy, and what a model needs around it.

One code path serves one device and many: a model is sharded block by block, bottom-up, and its root last. FSDP1
(``strategy="fsdp"``) is not offered: it cannot clip by norm and would pull the reference into the wrapped tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallel over every process of every node, named ``fsdp2`` in YAML and Python.

    Lightning's own default would shard tensors within a node and replicate data over nodes; this one splits the
    data over all processes.

    Args:
        save_distributed_checkpoint: Write a checkpoint as a folder of shards instead of one file that loads anywhere.
        **kwargs: Passed on to ``ModelParallelStrategy`` (``timeout``, ``process_group_backend``).
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs)

    def setup_environment(self) -> None:
        """Spread the data-parallel dimension over every process before the mesh is made."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over every process")


def shard(model: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, offload: bool = False) -> nn.Module:
    """Shard a causal language model over ``mesh``, block by block, and return it.

    Args:
        model: A ``transformers`` causal LM (or a peft model around one) with all weights on the CPU or the mesh's device.
        mesh: One-dimensional mesh over the data-parallel processes.
        dtype: Compute dtype of parameters and activations; gradients are reduced in float32.
        offload: Keep parameters, gradients and optimiser states in host memory between uses.
    """
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
    }
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    for block in transformer_blocks(model):
        fully_shard(block, **options)
    return fully_shard(model, **options)


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a ``transformers`` model (its ``_no_split_modules``), in the order of use."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names]


def is_sharded(model: nn.Module) -> bool:
    """Tell whether ``model`` is an FSDP2 root."""
    return isinstance(model, FSDPModule)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[nn.Module]:
    """Hold all parameters of a sharded model gathered for the length of a block; a no-op where nothing is sharded.

    Worth it around generation, where every token would gather every layer again. Needs room for the whole model.
    Collective: every rank enters and leaves.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield model
    finally:
        for module in shards:  # back to what fully_shard chose: the root keeps its parameters after forward
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def full_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gather the whole state dict to rank 0's host memory (empty elsewhere); collective where the model is sharded."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
