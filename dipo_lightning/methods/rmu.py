"""RMU: steering of one layer's hidden states on the forget answers to a random direction (arXiv 2403.03218)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.losses.chunking import global_mean, working_dtype
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers, TokenBatch, compute_answers, concatenate, split, supervised_positions
from dipo_lightning.models.distributed import transformer_blocks
from dipo_lightning.reference.references import ModelReference


def control_vector(size: int, coefficient: float, seed: int = 0) -> Tensor:
    """Draw the fixed target: a random unit vector times a coefficient.

    Args:
        size: Hidden size H.
        coefficient: Length of the vector, usually 2 to 20.
        seed: Seed of a separate generator, so that every process and every resumed run draws the same vector.

    Returns:
        (H,) float32 on the CPU; entries uniform in [0, 1) before normalising, as published.
    """
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return normalize(direction, dim=0) * coefficient


def rmu_distance(hidden: Tensor, target: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Compute the mean squared distance of hidden states to their target, for the forget and for the retain term.

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
    """RMU: hidden states of one layer on the forget answers move to a fixed random vector.

    Source: WMDP, arXiv 2403.03218, which steers block 7 and trains the down projections of blocks 5, 6 and 7 alone.

    Args:
        pretrained: The model that must forget; also the reference.
        layer: The transformer block whose output is steered, counted from 0.
        coefficient: Length of the control vector.
        control_seed: Seed of its direction.
        trained: Regular expressions for the names of the weights to train, each matching a whole name; None trains
            every weight that some term of the loss reaches.
        retain_loss: ``hidden`` (mean squared distance of the layer's states to the reference's, the source's term),
            ``nll``, ``kl`` or ``none``, each on the retain answers.
        **options: Those of `UnlearningModule`.
    """

    def __init__(
        self,
        pretrained: str,
        layer: int = 7,
        coefficient: float = 2.0,
        control_seed: int = 0,
        trained: list[str] | None = None,
        retain_loss: Literal["hidden", "nll", "kl", "none"] = "hidden",
        **options: Any,
    ) -> None:
        super().__init__(pretrained, retain_loss=retain_loss, **options)  # type: ignore[arg-type]  # one more
        if trained is not None and self.lora is not None:
            raise InputError("model.trained names weights, but with model.lora the adapters are trained; use one.")
        check_numbers("model", {"coefficient": coefficient}, least=0)
        self.layer, self.coefficient, self.control_seed = layer, coefficient, control_seed
        self.keeps_hidden = retain_loss == "hidden"
        self.trained = None if trained is None else [_compiled(pattern) for pattern in trained]
        self._captured: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # the reference's states of the current batch, by part

    @property
    def reference_parts(self) -> list[str]:
        """Parts of a batch that need the reference: at most the retain rows; the forget term's target is random."""
        needed = self.keeps_hidden or self.retain_loss_name == "kl"
        return ["retain"] * (needed and not self._skips("retain"))

    def inspect(self, model: nn.Module) -> None:
        """Refuse a layer that the model does not have."""
        super().inspect(model)
        blocks = len(transformer_blocks(model))
        if not 0 <= self.layer < blocks:
            raise InputError(f"model.layer is {self.layer}, but the model has {blocks} blocks: give 0 to {blocks - 1}.")

    def freeze_untrained(self, model: nn.Module) -> None:
        """Freeze the weights that are not chosen or that the loss does not reach: DDP would wait for their gradient.

        Raises:
            InputError: A chosen name is not in the model, or the loss does not reach its weight.
        """
        super().freeze_untrained(model)
        chosen = dict(model.named_parameters())
        if self.trained is not None:
            chosen = {name: chosen[name] for name in matching(self.trained, list(chosen))}
            model.requires_grad_(False)
            for parameter in chosen.values():
                parameter.requires_grad_(True)
        if self.retain_loss_name in ("nll", "kl") and not self._skips("retain"):
            return  # which reach every layer
        with torch.enable_grad(), recorded(model, self.layer) as states:
            model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
        reached = leaves(states["hidden"])
        lost = [name for name, parameter in chosen.items() if parameter not in reached]
        if self.trained is not None and lost:
            raise InputError(
                f"model.trained names {lost[0]}, which lies behind block {self.layer}: with retain_loss "
                f"{self.retain_loss_name} nothing reaches it. Name weights up to that block, or use nll or kl."
            )
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in reached)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Run the ordinary step while recording the steered layer's output."""
        assert self.policy is not None
        with recorded(self.policy, self.layer) as states:
            self._captured = states
            return super().training_step(batch, batch_idx)

    def read_reference(self, parts: dict[str, TokenBatch]) -> None:
        """Record the reference's states of the steered layer on the joint batch, without a gradient."""
        if not self.keeps_hidden:
            super().read_reference(parts)
        elif isinstance(reference := self.frozen_reference, ModelReference):
            with torch.no_grad(), reference.frozen(), recorded(reference.model, self.layer) as states:
                compute_answers(reference.model, parts, lambda _: {}, from_hidden=self.from_hidden)
            self._kept = at_answers(states["hidden"], parts)

    def losses(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the forget term from the layer's states of the joint forward, and the retain term."""
        states = at_answers(self._captured.pop("hidden"), {part: one.batch for part, one in answers.items()})
        forget = answers["forget"]
        control = control_vector(states["forget"].shape[-1], self.coefficient, self.control_seed).to(states["forget"])
        terms = {"forget": rmu_distance(states["forget"], control, forget.token_denominator)}
        if "retain" in answers:
            retain = answers["retain"]
            terms["retain"] = (
                rmu_distance(states["retain"], self._kept["retain"], retain.token_denominator)
                if self.keeps_hidden
                else self.retain_term(retain)
            )
        return terms


def matching(patterns: Sequence[re.Pattern[str]], names: Sequence[str]) -> list[str]:
    """Return the names that some pattern fully matches, in order; an `InputError` for a pattern without a match."""
    for pattern in patterns:
        if not any(pattern.fullmatch(name) for name in names):
            near = get_close_matches(pattern.pattern.replace("\\", ""), names, n=1, cutoff=0.0)
            raise InputError(f"model.trained: {pattern.pattern} matches no weight; the nearest is {near[0]}.")
    return [name for name in names if any(pattern.fullmatch(name) for pattern in patterns)]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"model.trained: {pattern!r} is not a regular expression ({error}).") from error


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
    """Return the (N, H) states of each part at its supervised positions, from the joint batch's (B, L, H) states."""
    joint = supervised_positions(concatenate(list(parts.values()))["labels"])
    return dict(zip(parts, split(hidden[joint], parts), strict=True))
