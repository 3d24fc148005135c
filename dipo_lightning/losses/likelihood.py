"""Token likelihood and KL divergence on logits, and the NLL from hidden states without (tokens, vocabulary) logits.

With p the policy's probabilities, W its output projection and y the label, nll = lse - <W_y, x>; its gradient on the
logits is p - onehot(y), which the backward pass recomputes (`dipo_lightning.losses.chunking`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, kl_div

from dipo_lightning.errors import check_numbers
from dipo_lightning.losses.chunking import (
    ClosedForm,
    WeightGradient,
    align,
    check_projection,
    piece_size,
    project,
    slices,
    vocabulary_buffer,
    working_dtype,
)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each supervised token.

    Args:
        logits: (N, V) logits at the positions that predict the tokens; bfloat16 and float16 are raised to float32.
        labels: (N,) int64 tokens, all in [0, V): positions without supervision are not selected in the first place.

    Returns:
        (N,) nats, float32 (float64 for float64 logits).
    """
    # -1 can never be a label, so a stray -100 fails as an index instead of vanishing from a mean
    return cross_entropy(logits.to(working_dtype(logits)), labels, reduction="none", ignore_index=-1)


def token_kl(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Compute KL(reference || policy) at each position.

    Args:
        policy_logits: (N, V) policy logits.
        reference_logits: (N, V) logits of the frozen reference at the same positions.

    Returns:
        (N,) nats; the gradient on the policy logits is policy - reference.
    """
    dtype = working_dtype(policy_logits, reference_logits)
    policy = policy_logits.to(dtype).log_softmax(-1)
    reference = reference_logits.detach().to(dtype).log_softmax(-1)
    return kl_div(policy, reference, reduction="none", log_target=True).sum(-1)


def chunked_nll(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int = 1024) -> Tensor:
    """Compute the NLL of each supervised token from hidden states; equal to `token_nll(hidden @ weight.T, labels)`.

    Args:
        hidden: (N, H) last hidden states (after the final norm) at the selected positions.
        weight: (V, H) output projection, without bias or soft cap.
        labels: (N,) int64 tokens in [0, V).
        chunk_size: Positions whose vocabulary-sized values may live at the same time.

    Returns:
        (N,) nats, float32 (float64 for float64 inputs), differentiable once in `hidden` and `weight`.

    Raises:
        InputError: Shapes do not fit.
    """
    return _run(_TokenNLL, hidden, weight, labels, chunk_size)


def chunked_nll_sum(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int = 1024) -> Tensor:
    """Compute ``chunked_nll(...).sum()``, with one projection less if there are several chunks."""
    return _run(_SummedNLL, hidden, weight, labels, chunk_size)


def _run(function: type[torch.autograd.Function], hidden: Tensor, weight: Tensor, labels: Tensor, size: int) -> Tensor:
    """Check, align the dtypes and run outside autocast."""
    check_numbers("", {"chunk_size": size})
    check_projection(hidden, weight, "policy")
    hidden, weight = align(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = function.apply(hidden, weight, labels, size)
    return result


def _residuals(hidden: Tensor, weight: Tensor, labels: Tensor, out: Tensor) -> Tensor:
    """Write softmax - onehot of each position into `out` (n, V), and return the NLLs (n,)."""
    values = []
    for piece in slices(len(hidden), piece_size(hidden.device, len(hidden))):
        logits = project(hidden[piece], weight, out[piece])
        places = labels[piece].unsqueeze(-1)
        chosen = logits.gather(-1, places)
        top = logits.amax(-1, keepdim=True)
        probability = torch.softmax(logits, -1, out=logits)
        # softmax at the largest logit is 1 / sum exp(h - top): the log-sum-exp from two maxima, the cheapest passes
        values.append((top - probability.amax(-1, keepdim=True).log() - chosen).squeeze(-1))
        probability.scatter_add_(-1, places, torch.full_like(chosen, -1.0))
    return torch.cat(values)


class _TokenNLL(ClosedForm):
    """Token NLL, with a separate upstream gradient for each token, as sequence losses (NPO, SimNPO, DPO) need."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
        """Compute the NLLs (N,) chunk by chunk; `hidden` has the dtype of `weight`."""
        buffer = vocabulary_buffer(hidden, weight, chunk_size)
        nll = torch.empty(len(hidden), dtype=buffer.dtype, device=hidden.device)
        directions = torch.empty_like(hidden, dtype=buffer.dtype) if ctx.needs_input_grad[0] else None
        for chunk in slices(len(hidden), chunk_size):
            out = buffer[: chunk.stop - chunk.start]
            nll[chunk] = _residuals(hidden[chunk], weight, labels[chunk], out)
            if directions is not None:
                directions[chunk] = out.to(weight.dtype) @ weight

        def fill(chunk: slice, out: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
            _residuals(hidden[chunk], weight, labels[chunk], out)

        _TokenNLL.keep(ctx, hidden, weight, directions, buffer, chunk_size, fill, labels)
        return nll


class _SummedNLL(torch.autograd.Function):
    """Sum of all token NLLs: with one upstream gradient for all, both gradients are computed in the forward pass."""

    # As torch.nn.functional.linear_cross_entropy does it, and as fast as that is with the same chunks in float32 (its
    # own choice of chunks is 6 times as slow on a CPU). But its loss has the dtype of the input: in bfloat16, 3 digits.

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
        """Compute the sum () and, if they are needed, both its gradients, chunk by chunk."""
        for_hidden, for_weight, *_ = ctx.needs_input_grad
        chunk_size = piece_size(hidden.device, chunk_size)  # nothing of a chunk is kept: on a CPU few are as quick
        buffer = vocabulary_buffer(hidden, weight, chunk_size)
        total = hidden.new_zeros((), dtype=buffer.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden) if for_hidden else None, WeightGradient(weight)
        for chunk in slices(len(hidden), chunk_size):
            out = buffer[: chunk.stop - chunk.start]
            total += _residuals(hidden[chunk], weight, labels[chunk], out).sum()
            residuals = out.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = residuals @ weight
            if for_weight:
                grad_weight.add(residuals, hidden[chunk])
        ctx.save_for_backward(grad_hidden, grad_weight.result() if for_weight else None)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients from the forward pass by ``upstream`` (), in place; autograd allows this once."""
        scaled = (None if value is None else value.mul_(upstream) for value in ctx.saved_tensors)
        return *scaled, None, None
