"""RMU: steering of one layer's hidden states on the forget answers to a random direction (arXiv 2403.03218)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dipo_lightning.errors import InputError
from dipo_lightning.losses.reductions import global_mean, working_dtype
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers, compute_answers, split
from dipo_lightning.models.sharding import transformer_blocks
from dipo_lightning.models.token_batch import TokenBatch, concatenate, supervised_positions
from dipo_lightning.reference.references import ModelReference


def control_vector(size: int, coefficient: float, seed: int = 0) -> Tensor:
    """Draw the fixed target: a random unit vector times a coefficient.

    Args:
        size: hidden size H.
        coefficient: length of the vector, usually 2 to 20.
        seed: of a generator of its own, so that every process and every resumed run draws the same vector.

    Returns:
        (H,) float32 on the CPU; entries uniform in [0, 1) before normalising, as published.
    """
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return normalize(direction, dim=0) * coefficient


def rmu_distance(hidden: Tensor, target: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Compute the mean squared distance of hidden states to where they shall be: the loss of both terms.

    Args:
        hidden: (N, H) the policy's hidden states of the steered layer at the selected positions.
        target: (H,) `control_vector` for forget answers; (N, H) the frozen reference's states for retain answers.
        denominator: Global token count; None is N.

    Returns:
        Scalar, averaged over tokens and over H.
    """
    dtype = working_dtype(hidden)
    gap = hidden.to(dtype) - target.detach().to(dtype)
    return global_mean(gap.square().mean(-1), denominator)


class RMUModule(UnlearningModule):
    """Moves the hidden states of one layer on the forget answers to a fixed random vector, and keeps the others.

    The retain term is the mean squared distance of the policy's hidden states to the reference's.

    Args:
        pretrained: The model that must forget; also the reference.
        layer: The transformer block whose output is steered, counted from 0.
        coefficient: Length of the control vector.
        control_seed: Seed of its direction.
        **options: Those of `UnlearningModule`.
    """

    def __init__(
        self, pretrained: str, layer: int = 7, coefficient: float = 2.0, control_seed: int = 0, **options: Any
    ) -> None:
        super().__init__(pretrained, **options)
        if self.retain_loss_name == "kl":
            raise InputError("model.retain_loss is kl; RMU keeps hidden states instead. Use nll (its term) or none.")
        self.layer, self.coefficient, self.control_seed = layer, coefficient, control_seed
        self._captured: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # the reference's states of the current batch, by part

    @property
    def reference_parts(self) -> list[str]:
        """The retain rows only: the forget term's target is random."""
        return [] if self._skips("retain") else ["retain"]

    def inspect(self, model: nn.Module) -> None:
        """Refuse a layer that the model does not have."""
        super().inspect(model)
        blocks = len(transformer_blocks(model))
        if not 0 <= self.layer < blocks:
            raise InputError(f"model.layer is {self.layer}, but the model has {blocks} blocks: give 0 to {blocks - 1}.")

    def freeze_untrained(self, model: nn.Module) -> None:
        """Also freeze what lies behind the steered layer: it gets no gradient, which DDP would wait for."""
        super().freeze_untrained(model)
        with torch.enable_grad(), recorded(model, self.layer) as states:
            model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
        trained = leaves(states["hidden"])
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in trained)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Run the ordinary step while the steered layer's output is recorded."""
        assert self.policy is not None
        with recorded(self.policy, self.layer) as states:
            self._captured = states
            return super().training_step(batch, batch_idx)

    def read_reference(self, parts: dict[str, TokenBatch]) -> None:
        """Record the reference's states of the steered layer on the joint batch, without a gradient."""
        if isinstance(self.reference, ModelReference):
            with torch.no_grad(), self.reference.frozen(), recorded(self.reference.model, self.layer) as states:
                compute_answers(self.reference.model, parts, lambda _: {}, from_hidden=self.from_hidden)
            self._kept = at_answers(states["hidden"], parts)

    def losses(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return both terms from the layer's states of the joint forward."""
        states = at_answers(self._captured.pop("hidden"), {part: one.batch for part, one in answers.items()})
        forget = answers["forget"]
        control = control_vector(states["forget"].shape[-1], self.coefficient, self.control_seed).to(states["forget"])
        terms = {"forget": rmu_distance(states["forget"], control, forget.token_denominator)}
        if "retain" in answers:
            denominator = answers["retain"].token_denominator
            terms["retain"] = rmu_distance(states["retain"], self._kept["retain"], denominator)
        return terms


@contextmanager
def recorded(model: nn.Module, layer: int) -> Iterator[dict[str, Tensor]]:
    """Record the output (B, L, H) of a transformer block as ``hidden`` while a block of code runs."""
    states: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        states["hidden"] = output[0] if isinstance(output, tuple) else output

    handle = transformer_blocks(model)[layer].register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


def leaves(value: Tensor) -> set[Tensor]:
    """Return the parameters that a backward pass from ``value`` reaches."""
    found: set[Tensor] = set()
    seen, todo = set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        todo += [following for following, _ in node.next_functions]
    return found


def at_answers(hidden: Tensor, parts: dict[str, TokenBatch]) -> dict[str, Tensor]:
    """Return the (N, H) states of each part at its supervised positions, from those (B, L, H) of the joint batch."""
    joint = supervised_positions(concatenate(list(parts.values()))["labels"])
    return dict(zip(parts, split(hidden[joint], parts), strict=True))
