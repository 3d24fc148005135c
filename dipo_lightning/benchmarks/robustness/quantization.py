"""Quantisation attack: the model is measured again with quantised weights, as it would be deployed.

The quantisation is "fake": each weight is replaced by its dequantised value and keeps its dtype, so that the attack
runs on any device with the arithmetic of the original model. As in transformers' integration of `bitsandbytes`, all
linear layers but the output projection are quantised.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dipo_lightning.benchmarks.robustness.attack import Attack, Condition, Subject, measure_answers, plainly
from dipo_lightning.errors import InputError
from dipo_lightning.models.distributed import is_spread
from dipo_lightning.models.head import causal_lm

NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The sixteen values of a 4-bit NormalFloat (Dettmers et al., 2023, arXiv 2305.14314, appendix E)."""
NF4_BLOCK = 64
"""Number of weights that share a scale in NF4 (the same source, section 3)."""


@dataclass
class Quantization(Attack):
    """Attack that quantises the weights; 4 bits can recover forgotten knowledge (Zhang et al., 2024, arXiv 2410.16454).

    Attributes:
        formats: ``int8`` (that of LLM.int8, arXiv 2208.07339: a scale per output channel), ``nf4`` (that of QLoRA,
            arXiv 2305.14314: 4 bits, a scale per block of 64 weights; by `bitsandbytes` on a GPU if it is installed)
            and ``fake_nf4`` (the same without `bitsandbytes`, on any device).
    """

    formats: tuple[str, ...] = ("int8", "nf4")

    name = "quantization"

    def conditions(self, subject: Subject) -> list[Condition]:
        """Return a condition for each format.

        Raises:
            InputError: A format is unknown.
        """
        for name in self.formats:
            if name not in ROUNDINGS:
                raise InputError(f"quantization.formats has {name!r}; it may have {', '.join(ROUNDINGS)}.")
        return [Condition(name, f"weights in {name}", kind="rounded") for name in self.formats]

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, list[dict[str, Any]]]:
        """Measure the plain questions on the quantised weights."""
        with rounded(policy, condition.name):
            return {condition.name: measure_answers(policy, subject, plainly(subject))}


def int8(weight: Tensor) -> Tensor:
    """Round a weight to int8 steps of 1/127 of the largest absolute value in its output channel.

    Args:
        weight: (O, I) any floating dtype.

    Returns:
        (O, I) of the same dtype; a channel of zeros is unchanged.
    """
    values = weight.float()
    scale = values.abs().amax(dim=1, keepdim=True) / 127
    steps = torch.where(scale > 0, values / scale, torch.zeros_like(values)).round()
    return (steps * scale).to(weight.dtype)


def nf4(weight: Tensor) -> Tensor:
    """Round a weight to NF4: on a GPU by the kernels of `bitsandbytes` if it is installed, else by `fake_nf4`."""
    if not (weight.is_cuda and importlib.util.find_spec("bitsandbytes")):
        return fake_nf4(weight)
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return functional.dequantize_4bit(packed, state).to(weight.dtype)


def fake_nf4(weight: Tensor) -> Tensor:
    """Round a weight to the nearest of 16 NormalFloat levels times the largest absolute value of its block of 64.

    Args:
        weight: (O, I) any floating dtype; blocks are consecutive weights in row-major order.

    Returns:
        (O, I) of the same dtype; a block of zeros is unchanged.
    """
    flat = weight.float().flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % NF4_BLOCK)]).view(-1, NF4_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    middles = (levels[1:] + levels[:-1]) / 2
    places = torch.bucketize(torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks)), middles)
    return (levels[places] * scale).flatten()[: len(flat)].view_as(weight).to(weight.dtype)


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {"int8": int8, "nf4": nf4, "fake_nf4": fake_nf4}


@contextmanager
def rounded(policy: nn.Module, name: str) -> Iterator[None]:
    """Round a policy's linear weights within a ``with`` block, and restore them bit for bit.

    Adapters are merged into the weights first, as for deployment.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one.
        name: One of `ROUNDINGS`.

    Raises:
        InputError: The weights are sharded over processes, so that no process has whole channels or blocks.
    """
    from transformers.pytorch_utils import Conv1D

    if any(is_spread(parameter) for parameter in policy.parameters()):
        raise InputError(
            "Weights that are sharded over processes cannot be quantised: leave quantization out of the callback's "
            "attacks, and use `dipo-lightning attack` on the exported model."
        )
    projection = causal_lm(policy).get_output_embeddings()
    tied = None if projection is None else projection.weight
    layers = {
        id(module.weight): module
        for name_, module in policy.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module.weight is not tied and "lora_" not in name_
    }
    saved = [(module.weight, module.weight.detach().clone()) for module in layers.values()]
    merged = hasattr(policy, "merge_adapter")
    with torch.no_grad():
        try:
            if merged:
                policy.merge_adapter()  # type: ignore[operator]
            for module in layers.values():
                weight = module.weight
                transposed = isinstance(module, Conv1D)  # GPT-2 stores W transposed
                weight.copy_(ROUNDINGS[name](weight.T).T if transposed else ROUNDINGS[name](weight))
            yield
        finally:
            if merged:
                policy.unmerge_adapter()  # type: ignore[operator]
            for parameter, original in saved:
                parameter.copy_(original)
