"""Gradient norms of single rows, for a membership attack (GradNorm, arXiv 2402.17012)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.evaluation.scoring import fitted
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.models.answers import IGNORED
from dipo_lightning.models.distributed import evaluation_mode, gather, is_sharded, is_spread, own_batches


def gradient_norms(
    policy: nn.Module,
    examples: Sequence[Example],
    *,
    device: torch.device | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[float | None]:
    """Compute each row's gradient norm; collective, with the same list on every process.

    It is the mean over the parameter tensors of the L2 norm of the gradient of the row's mean NLL.

    This is open-unlearning's attack without dropout. Only trainable parameters have a gradient; with LoRA these are the
    adapters. Existing gradients are restored.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one, sharded or not.
        examples: Ids and labels of the rows.
        device: Device of the rows; by default that of the policy's parameters.
        progress: Called after each row.

    Returns:
        The norm of each row, lower for a row that was learnt; None if it has no label or its norm is not finite.
    """
    device = device or next(policy.parameters()).device
    examples = fitted(policy, examples)
    for module in policy.modules():
        if is_sharded(module):  # the root keeps its parameters gathered after a forward
            module.reshard()
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    together = any(is_spread(parameter) for parameter in parameters)
    places = [[place] for place, (_, labels) in enumerate(examples) if any(label != IGNORED for label in labels[1:])]
    # A sharded model averages the gradients of all processes: each takes the same row at the same time.
    batches = ((batch, True) for batch in places) if together else own_batches(places)
    found: dict[int, float] = {}
    with evaluation_mode(policy), torch.inference_mode(False), torch.enable_grad(), _kept_gradients(parameters):
        for [place], own in batches:
            norm = _gradient_norm(policy, examples[place], parameters, device)
            if own:
                found[place] = norm
                if progress is not None:
                    progress(1)
    found = gather(found)
    return [norm if (norm := found.get(place, torch.nan)) < torch.inf else None for place in range(len(examples))]


def without_end(style: PromptStyle, ids: list[int], labels: list[int]) -> Example:
    """Remove the token that ends the turn from an example, as open-unlearning's scores do."""
    return (ids[:-1], labels[:-1]) if labels[-1] in style.stop_ids else (ids, labels)


def _gradient_norm(
    policy: nn.Module, example: Example, parameters: Sequence[nn.Parameter], device: torch.device
) -> float:
    ids, labels = (torch.tensor([values], device=device) for values in example)
    logits = policy(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
    for parameter in parameters:
        parameter.grad = None
    torch.nn.functional.cross_entropy(logits.float(), labels[0, 1:], ignore_index=IGNORED).backward()
    norms = [_norm(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return torch.stack(norms).double().mean().item()


def _norm(gradient: Tensor) -> Tensor:
    """Return the L2 norm on the CPU, computed in float32 or wider."""
    norm = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
    return (norm.full_tensor() if is_spread(norm) else norm).cpu()


@contextmanager
def _kept_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Restore the gradients of the parameters at the end of a block."""
    before = [parameter.grad for parameter in parameters]
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
