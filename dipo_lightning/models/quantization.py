"""QLoRA (Dettmers et al. 2023, arXiv 2305.14314): a frozen base in 4 bits through bitsandbytes, under LoRA adapters.

Every linear layer of the blocks keeps its weight as NF4 (4 bits, blocks of 64 with scales that are themselves stored in
8 bits: 0.516 bytes a weight) and is unpacked to bfloat16 where it is used; what else is frozen is kept in bfloat16.
With the adapters off this is the reference, bit for bit. The packed weights are no part of a state dict: they follow
from the pretrained model.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from dipo_lightning.errors import InputError
from dipo_lightning.models.head import causal_lm, output_projection

NF4 = "nf4"
BLOCK = 64
COMPUTE = torch.bfloat16
BYTES = 0.5 + 1 / BLOCK + 4 / (BLOCK * 256)
"""Bytes of a packed weight: 4 bits, an 8-bit scale for each block, and a float32 for each 256 scales."""


class FourBitLinear(nn.Module):
    """Frozen linear layer whose weight is kept in NF4.

    Args:
        linear: The layer to pack, left as it was.
        device: Where to pack it.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        from bitsandbytes.functional import quantize_4bit

        weight = linear.weight.detach().to(device, torch.float32)
        packed, self.state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type=NF4)
        self.state.dtype = COMPUTE  # of the unpacked weight: it says float32, which the backward pass would unpack to
        self.register_buffer("packed", packed, persistent=False)
        bias = None if linear.bias is None else linear.bias.detach().to(device, COMPUTE)
        self.register_buffer("bias", bias, persistent=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., in) to (..., out) in bfloat16; the backward pass unpacks the weight again instead of keeping it."""
        from bitsandbytes import matmul_4bit

        result: Tensor = matmul_4bit(inputs.to(COMPUTE), self.packed.t(), quant_state=self.state, bias=self.bias)
        return result

    def dense(self) -> nn.Linear:
        """Return the layer with its unpacked weight, float32, on the CPU."""
        from bitsandbytes.functional import dequantize_4bit

        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(dequantize_4bit(self.packed, self.state).cpu().float(), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.float().cpu(), requires_grad=False)
        return linear

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourBitLinear:
        """Move the scales with the packed weight; neither changes its dtype."""
        super()._apply(fn, recurse)
        self.state.to(self.packed.device)
        return self


def check_quantized(trainer: Any, module: Any) -> None:
    """Refuse a 4-bit base where it cannot work, before the model is loaded.

    Args:
        trainer: The Trainer.
        module: A `LanguageModelModule` whose ``lora.base`` is ``nf4``.

    Raises:
        InputError: FSDP2, a CPU, another precision, a live reference, compiled blocks, or no bitsandbytes.
    """
    asked = f"model.lora.base is {NF4}"
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise InputError(
            f"{asked}, but trainer.strategy fsdp2 shards weights, and packed ones cannot be sharded. Use one GPU or "
            "strategy: ddp; or base: float32, which fsdp2 splits over the GPUs."
        )
    if trainer.strategy.root_device.type != "cuda":
        raise InputError(
            f"{asked}, which needs an NVIDIA GPU; this run is on {trainer.strategy.root_device.type}. Leave it out."
        )
    check_installed()
    if str(trainer.precision) != "bf16-mixed":
        raise InputError(f"{asked}, which computes in bfloat16: write trainer.precision: bf16-mixed.")
    if getattr(module, "reference_name", "") == "live":
        raise InputError(
            f"{asked}, and model.reference is live: a second model in float32 would not agree with the policy before "
            "the first step. Use adapters_off or auto."
        )
    if module.compile_blocks:
        raise InputError(f"{asked}, which model.compile_blocks cannot compile; leave one of them out.")


def check_installed() -> None:
    """Refuse to go on without bitsandbytes.

    Raises:
        InputError: It is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("A base in 4 bits (lora.base: nf4) needs bitsandbytes: pip install 'dipo-lightning[qlora]'")


def quantize_base(policy: nn.Module, device: torch.device) -> nn.Module:
    """Pack the linear layers under and beside the adapters; other frozen weights become bfloat16.

    Args:
        policy: A peft model with LoRA adapters; changed in place.
        device: Where to pack, one layer after another: the GPU never holds an unpacked model.

    Returns:
        The policy.

    Raises:
        InputError: It has no such layer.
    """
    check_installed()
    model = causal_lm(policy)
    projection = output_projection(policy)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not module.weight.requires_grad and module.weight is not projection:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, FourBitLinear(module, device))
    if not is_quantized(model):
        raise InputError(
            f"model.lora.base is {NF4}, which packs the linear layers of the blocks; this {model.config.model_type} "
            "model has none (their weights are of another kind). Leave it out."
        )
    for name, weight in model.named_parameters():
        if not (weight.requires_grad or any(kept in name for kept in _kept_in_float32(model))):
            weight.data = weight.data.to(COMPUTE)
    return policy


def _kept_in_float32(model: Any) -> set[str]:
    """Parts of parameter names that a family cannot compute with in less, as ``transformers`` knows them."""
    names = [getattr(model, f"_keep_in_fp32_modules{kind}", None) or () for kind in ("", "_strict")]
    return {name for some in names for name in some}


def is_quantized(policy: nn.Module) -> bool:
    """Tell whether a policy has packed layers."""
    return any(isinstance(module, FourBitLinear) for module in policy.modules())


def dense_copy(policy: nn.Module) -> nn.Module:
    """Return a copy on the CPU, float32, with every packed layer unpacked: it computes what the policy does."""
    dense = {id(module): module.dense() for module in policy.modules() if isinstance(module, FourBitLinear)}
    return copy.deepcopy(policy, dense).to("cpu", torch.float32)  # in place of a packed layer its dense one
