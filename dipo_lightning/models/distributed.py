"""Sharding over processes (torch's FSDP2 under Lightning), and evaluation on any number of them.

One code path serves one device and many: a model is sharded block by block, bottom-up, and its root last. FSDP1
(``strategy="fsdp"``) is not offered: it cannot clip by norm and would pull the reference into the wrapped tree.

Evaluation batches are planned over all rows at once and batch i goes to process i modulo the world size, so a row has
the same neighbours (and the same rounding) on one device and on many, and is computed exactly once.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from dipo_lightning.errors import InputError
from dipo_lightning.models.head import causal_lm

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallel over every process of every node, named ``fsdp2`` in YAML and Python.

    Lightning's own default would shard tensors within a node and replicate data over nodes; this one splits the
    data over all processes.

    Args:
        save_distributed_checkpoint: Write a checkpoint as a folder of shards instead of one file that loads anywhere.
        **kwargs: Passed on to ``ModelParallelStrategy`` (``timeout``, ``process_group_backend``; with CPU offload on
            GPUs the norm of the gradient is summed on the host, which needs ``cpu:gloo,cuda:nccl``).
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs)

    def setup_environment(self) -> None:
        """Spread the data-parallel dimension over every process before the mesh is made."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def model_to_device(self) -> None:
        """Move the module to the device, unless `shard` has left its weights in host memory (offloading)."""
        assert self.model is not None
        device = self.root_device.type
        if not any(is_spread(weight) and weight.device.type != device for weight in self.model.parameters()):
            super().model_to_device()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint of either kind; code in it is never run."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            from dipo_lightning.safety.shard_files import check_shards

            check_shards(path)
            return super().load_checkpoint(path, weights_only=True)
        optimizers, self.optimizers = self.optimizers, []
        try:
            checkpoint = super().load_checkpoint(path, weights_only=True)
        finally:
            self.optimizers = optimizers
        states = checkpoint["optimizer_states"] if optimizers else []  # validate has no optimiser
        for optimizer, state in zip(optimizers, states, strict=True):
            load_optimizer_state(self.lightning_module, optimizer, state)  # type: ignore[arg-type]
        return checkpoint


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over every process")


def check_strategy(strategy: Any) -> None:
    """Raise an `InputError` for a strategy (or its name or YAML) that would train incorrectly.

    These are FSDP1, DeepSpeed, and DDP whose processes are spawned or forked: the trained weights would not come back.

    Lightning itself refuses some of them, but only when it builds the Trainer, and without naming an alternative.
    """
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    start = getattr(strategy, "_start_method", None)  # of Lightning's DDPStrategy
    if isinstance(strategy, Mapping) or hasattr(strategy, "class_path"):
        name, options = str(strategy["class_path"]), strategy.get("init_args") or {}
        start = options.get("start_method")
    name = name.rpartition(".")[2]
    if name.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")) or start not in (None, "popen"):
        raise InputError(
            f"trainer.strategy is {name} with processes that are spawned or forked: the trained model would be lost "
            "with them. Write strategy: ddp; a notebook can train on one device (trainer.devices: 1)."
        )
    if name == "FSDPStrategy" or name in ("fsdp", "fsdp_cpu_offload"):
        raise InputError(
            f"trainer.strategy is {name} (FSDP1): it cannot clip by norm and would train and save the reference. "
            "Write strategy: fsdp2" + (" and model.cpu_offload: true." if name.endswith("offload") else ".")
        )
    if name == "ModelParallelStrategy" or name.lower().startswith(("deepspeed", "xla")):
        raise InputError(f"trainer.strategy is {name}, which is not supported; write strategy: fsdp2, ddp or auto.")


def check_accelerator(accelerator: Any, option: str = "trainer.accelerator") -> None:
    """Raise an `InputError` for an accelerator that this machine does not have; Lightning's error names no remedy."""
    names = ("cuda", "mps") if accelerator == "gpu" else (str(accelerator),)
    known = [AcceleratorRegistry[name]["accelerator"] for name in names if name in AcceleratorRegistry]
    if known and not any(kind.is_available() for kind in known):
        instead = "auto or cpu" if option != "trainer.accelerator" else "auto or cpu (--config trainer/cpu)"
        raise InputError(
            f"{option} is {accelerator}, but torch {torch.__version__} finds no such device on this machine. Give "
            f"--{option} {instead}, or install the build of torch for your driver."
        )


def shard(
    model: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, offload: bool = False, trainable: bool = True
) -> nn.Module:
    """Shard a causal language model over ``mesh``, block by block, and return it.

    Args:
        model: A ``transformers`` causal LM or a peft model around one, all weights on the CPU or the mesh's device.
        mesh: One-dimensional mesh over the data-parallel processes.
        dtype: Compute dtype of parameters and activations; gradients are reduced in float32.
        offload: Keep parameters, gradients and optimiser states in host memory between uses.
        trainable: Whether a backward pass follows the forward pass; the root's parameters then stay gathered for it.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
    }
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    for block in transformer_blocks(model):
        fully_shard(block, **options)
    fully_shard(model, reshard_after_forward=None if trainable else True, **options)
    if causal_lm(model) is not model:
        # peft generates through the model that it wraps. FSDP2 takes the first module that runs as the root: if a run
        # began with generating, each block would become a root of its own, and the next forward would fail.
        register_fsdp_forward_method(model, "generate")
    return model


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a causal LM, in the order of use; empty if it has no list of modules.

    The blocks are the module list with the most weights; lists of adapters, norms or experts have fewer. Image and
    audio towers are left out.
    """
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not re.search("vision|visual|image|audio|speech", name)
    ]
    return list(max(lists, key=_numbers, default=()))


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute each block's activations in the backward pass, also for models without support in ``transformers``."""
    causal = causal_lm(model)
    if getattr(causal, "supports_gradient_checkpointing", False):
        causal.activation_checkpointing_enable({"use_reentrant": False})
        return
    for block in transformer_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def is_sharded(module: nn.Module) -> TypeGuard[Any]:
    """Return whether a module is one of those that FSDP2 shards: every block, and the root."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # its import takes a second; without it nothing is sharded
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_spread(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is spread over processes."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[nn.Module]:
    """Keep all parameters of a sharded model gathered within a ``with`` block; a no-op if nothing is sharded.

    It pays around generation, where otherwise every layer would be gathered again for every token. Needs memory for the
    whole model. Collective: every rank enters and leaves.
    """
    shards = [module for module in model.modules() if is_sharded(module)]
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
    """Gather the whole state dict to rank 0's host memory (empty elsewhere); collective if the model is sharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return state


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's whole state from a checkpoint file of any strategy; collective.

    A file numbers the states: without sharding by the parameter's place in the optimiser, with FSDP2 by its place in
    the model, which counts frozen parameters too. Lightning assumes the latter for both, and fails if no parameter has
    a state. The order within the groups is the same in both.
    """
    if not state["state"]:  # plain SGD
        optimizer.load_state_dict({"state": {}, "param_groups": _numbered(state["param_groups"])})
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    if isinstance(next(iter(state["state"])), int):
        names = {parameter: name for name, parameter in model.named_parameters()}
        order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        named = dict(zip(numbers, order, strict=True))
        groups = [{**group, "params": [named[i] for i in group["params"]]} for group in state["param_groups"]]
        state = {"state": {named[i]: values for i, values in state["state"].items()}, "param_groups": groups}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, optim_state_dict=state, options=options)


def _numbered(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number the parameters of all groups one after the other, as torch's own optimisers save them."""
    numbers = itertools.count()
    return [{**group, "params": [next(numbers) for _ in group["params"]]} for group in groups]


T = TypeVar("T")
R = TypeVar("R")


def plan_batches(lengths: Sequence[int], budget: int, equal: bool = False) -> list[list[int]]:
    """Group rows of similar length so that no batch holds more than ``budget`` tokens, padding included.

    A longer row gets a batch of its own; with ``equal`` only rows of the same length share a batch. Returns the indices
    of each batch, the longest rows first, so that a lack of memory shows at once.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if room == 0 or (equal and lengths[index] != lengths[batches[-1][0]]):
            batches.append([])
            room = max(1, budget // max(1, lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches


def own_batches(batches: Sequence[list[T]]) -> Iterator[tuple[list[T], bool]]:
    """Return this process's batches, the same number on every process, and whether each is its own.

    A sharded model gathers its weights in every forward, so a process without work has to take part: it gets the last
    batch again, and drops the results.
    """
    rank, world = rank_and_world()
    for start in range(0, len(batches), world):
        own = start + rank < len(batches)
        yield (batches[start + rank] if own else batches[-1]), own


def shared_out(
    batches: Sequence[list[T]],
    compute: Callable[[list[T]], Mapping[int, R]],
    progress: Callable[[int], object] | None = None,
) -> dict[int, R]:
    """Compute batches on all processes and merge their results by row index; collective.

    ``progress`` is called with the number of new results: after each batch of this process, and once for those of the
    other processes.
    """
    results: dict[int, R] = {}
    for batch, own in own_batches(batches):
        found = compute(batch)
        if own:
            results.update(found)
            if progress is not None:
                progress(len(found))
    done = len(results)
    results = gather(results)
    if progress is not None:
        progress(len(results) - done)
    return results


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the world size."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(results: Mapping[int, T]) -> dict[int, T]:
    """Merge the results of all processes by row index; collective, and the same on every process."""
    _, world = rank_and_world()
    if world == 1:
        return dict(results)
    parts: list[dict[int, T] | None] = [None] * world
    dist.all_gather_object(parts, dict(results))
    return {index: value for part in parts if part is not None for index, value in part.items()}


def least(number: int) -> int:
    """Return the smallest of the processes' numbers; collective."""
    rank, _ = rank_and_world()
    return min(gather({rank: number}).values())


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluate ``model`` without side effects: no dropout, no gradients, and random states restored.

    Afterwards every submodule gets its own mode back, instead of a ``train()`` for all.
    """
    training = [(module, module.training) for module in model.modules()]
    try:
        with isolate_rng(), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in training:
            module.training = mode
