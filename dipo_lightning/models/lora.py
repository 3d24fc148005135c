"""LoRA adapters (Hu et al. 2021) through peft: train small matrices and keep the model itself as the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from dipo_lightning.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRA:
    """Settings of the adapters.

    Attributes:
        rank: Inner width of an adapter.
        alpha: Its output is multiplied by ``alpha / rank``.
        dropout: Probability with which an adapter's inputs are dropped in training.
        targets: Names of the linear modules that get one, such as ``[q_proj, v_proj]``; ``all-linear`` is all of them
            but the output projection.
        base: What the frozen weights are kept in: ``float32``, or ``nf4``, 4 bits through bitsandbytes (QLoRA), on one
            GPU or with DDP.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | list[str] = ALL_LINEAR
    base: Literal["float32", "nf4"] = "float32"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rank < 1:
            raise InputError(f"The LoRA rank is {self.rank}; it must be 1 or more.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"The LoRA dropout is {self.dropout}; it must be at least 0 and below 1.")
        if not self.targets:
            raise InputError(f"The LoRA targets are empty; name modules, or write {ALL_LINEAR}.")
        if self.base not in ("float32", "nf4"):
            raise InputError(f"The LoRA base is {self.base!r}; it is float32 or nf4.")


def add_lora(model: nn.Module, lora: LoRA) -> PeftModel:
    """Put adapters into `model` and freeze everything else; the outputs stay what they were until the first step.

    Args:
        model: A ``transformers`` causal LM; it is changed in place.
        lora: Settings.

    Returns:
        The model, wrapped; ``with wrapped.disable_adapter():`` it is the original.

    Raises:
        InputError: A target names no linear module of the model, or a weight that is tied to another.
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
    """Name the modules that are linear by class only: routers, grouped projections, what a kernel reads itself.

    State-space layers hand the weight of ``out_proj`` to a kernel, so peft refuses adapters there.
    """
    odd = [name for name, module in linear.items() if not _maps_rows(module)]
    if model.config.model_type in _STATE_SPACE:
        odd += [name for name in linear if name.endswith(("out_proj", "conv1d"))]
    return odd or None


def _maps_rows(module: Any) -> bool:
    """Tell whether a module maps (..., in) to (..., out), as its weight says."""
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
    """Tell whether the output projection of a ``transformers`` causal LM would get an adapter."""
    if lora.targets == ALL_LINEAR:
        return False
    targets = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    projection = model.get_output_embeddings()  # type: ignore[operator]
    names = [name for name, module in model.named_modules() if module is projection]
    return any(name == target or name.endswith(f".{target}") for name in names for target in targets)


def _check_targets(model: Any, targets: list[str], linear: dict[str, nn.Module]) -> None:
    """Peft ignores a target that matches nothing as long as another one matches."""
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
