"""LoRA adapters (Hu et al. 2021) through peft, and QLoRA (Dettmers et al. 2023, arXiv 2305.14314) through bitsandbytes.

Small matrices are trained, and the model without them remains the reference. Under QLoRA every linear layer of the
blocks stores its weight as NF4 (4 bits, blocks of 64 with scales that are themselves stored in 8 bits: 0.516 bytes per
weight) and unpacks it for use. The packed model with its adapters off is the reference, bit for bit. The packed weights
are not part of a state dict, since they can be made again from the pretrained model.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from dipo_lightning.errors import InputError, check_fields, check_numbers, check_positive
from dipo_lightning.models.head import causal_lm, output_projection

if TYPE_CHECKING:
    from peft import PeftModel

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRA:
    """Settings of the adapters.

    Attributes:
        rank: Inner width of an adapter.
        alpha: Scale: an adapter's output is multiplied by ``alpha / rank``.
        dropout: Probability of dropping an adapter's inputs in training.
        targets: Names of the linear modules that get an adapter, such as ``[q_proj, v_proj]``; ``all-linear`` is all of
            them except the output projection.
        base: Storage of the frozen weights: ``float32``, or ``nf4``, 4 bits through bitsandbytes (QLoRA), on one GPU or
            with DDP.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | list[str] = ALL_LINEAR
    base: Literal["float32", "nf4"] = "float32"

    def __post_init__(self) -> None:
        """Check the values."""
        check_numbers("lora", {"rank": self.rank})
        check_positive("lora", {"alpha": self.alpha})
        if not 0 <= self.dropout < 1:
            raise InputError(f"The LoRA dropout is {self.dropout}; it must be at least 0 and below 1.")
        if not self.targets:
            raise InputError(f"The LoRA targets are empty; name modules, or write {ALL_LINEAR}.")
        check_fields("lora", self)


def add_lora(model: nn.Module, lora: LoRA) -> PeftModel:
    """Add adapters to `model` and freeze everything else; the outputs are unchanged until the first step.

    The model is changed in place and returned wrapped; ``with wrapped.disable_adapter():`` it is the original.

    Raises:
        InputError: A target is not a linear module of the model, or its weight is tied to another.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    linear: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    }
    targets: Any = lora.targets
    if targets != ALL_LINEAR:
        targets = [targets] if isinstance(targets, str) else list(targets)
        _check_targets(model, targets, linear)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=_excluded(model, linear) if targets == ALL_LINEAR else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),  # GPT-2 stores W transposed
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"LoRA targets {lora.targets} do not fit this model: {error}") from error


_STATE_SPACE = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


def _excluded(model: Any, linear: dict[str, nn.Module]) -> list[str] | None:
    """List linear modules that get no adapter: routers, grouped projections, and weights that a kernel reads itself.

    State-space layers pass the weight of ``out_proj`` to a kernel, so peft refuses adapters there.
    """
    odd = [name for name, module in linear.items() if not _maps_rows(module)]
    if model.config.model_type in _STATE_SPACE:
        odd += [name for name in linear if name.endswith(("out_proj", "conv1d"))]
    return odd or None


def _maps_rows(module: Any) -> bool:
    """Return whether a module maps (..., in) to (..., out), according to its weight."""
    if type(module) is nn.Linear or not isinstance(module, nn.Linear):
        return True
    rows = torch.zeros(1, 2, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        with torch.no_grad():
            output = module(rows)
    except (RuntimeError, ValueError, TypeError):
        return False
    return isinstance(output, torch.Tensor) and output.shape == (1, 2, module.out_features)


def adapts_projection(model: nn.Module, lora: LoRA) -> bool:
    """Return whether the output projection of a ``transformers`` causal LM would get an adapter."""
    if lora.targets == ALL_LINEAR:
        return False
    targets = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    projection = model.get_output_embeddings()  # type: ignore[operator]
    names = [name for name, module in model.named_modules() if module is projection]
    return any(name == target or name.endswith(f".{target}") for name in names for target in targets)


def _check_targets(model: Any, targets: list[str], linear: dict[str, nn.Module]) -> None:
    """Refuse a target that matches nothing, which peft ignores as long as another one matches."""
    tied = model.get_output_embeddings() if model.config.get_text_config().tie_word_embeddings else None
    for target in targets:
        hits = [module for name, module in linear.items() if name == target or name.endswith(f".{target}")]
        if not hits:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise InputError(f"LoRA target {target!r} names no linear module of this model; there are: {there}.")
        if any(module is tied for module in hits):
            raise InputError(
                f"LoRA target {target!r} is the output projection, whose weight is tied to the input embedding: an "
                "adapter on it could not be merged. Leave it out."
            )


NF4 = "nf4"
BLOCK = 64
COMPUTE = torch.bfloat16
BYTES = 0.5 + 1 / BLOCK + 4 / (BLOCK * 256)
"""Bytes of a packed weight: 4 bits, an 8-bit scale for each block, and a float32 for each 256 scales."""


class FourBitLinear(nn.Module):
    """Frozen linear layer whose weight is kept in NF4.

    Args:
        linear: The layer to pack, which is left unchanged.
        device: Device of the packed weight.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        super().__init__()
        from bitsandbytes.functional import quantize_4bit

        weight = linear.weight.detach().to(device, torch.float32)
        packed, self.state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type=NF4)
        self.state.dtype = COMPUTE  # of the unpacked weight; else the backward pass would unpack it to float32
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
    """Raise an `InputError` if a 4-bit base cannot work, before the model is loaded.

    It works neither with FSDP2, a CPU, a precision other than bf16-mixed, a live reference or compiled blocks, nor
    without bitsandbytes.
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
    """Raise an `InputError` if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("A base in 4 bits (lora.base: nf4) needs bitsandbytes: pip install 'dipo-lightning[qlora]'")


def quantize_base(policy: nn.Module, device: torch.device) -> nn.Module:
    """Pack the frozen linear layers, also those under adapters, in place; other frozen weights become bfloat16.

    They are packed one by one on ``device``, so that the GPU never holds the unpacked model.
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
    """Parts of the names of parameters that must stay in float32, as ``transformers`` lists them for the family."""
    names = [getattr(model, f"_keep_in_fp32_modules{kind}", None) or () for kind in ("", "_strict")]
    return {name for some in names for name in some}


def is_quantized(policy: nn.Module) -> bool:
    """Return whether a policy has packed layers."""
    return any(isinstance(module, FourBitLinear) for module in policy.modules())


def dense_copy(policy: nn.Module) -> nn.Module:
    """Return a copy on the CPU, float32, with every packed layer unpacked: it computes what the policy does."""
    dense = {id(module): module.dense() for module in policy.modules() if isinstance(module, FourBitLinear)}
    return copy.deepcopy(policy, dense).to("cpu", torch.float32)  # the memo replaces packed layers by dense ones
