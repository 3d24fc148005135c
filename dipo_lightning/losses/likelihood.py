"""Token likelihood and KL divergence, on logits and from hidden states without (tokens, vocabulary) logits.

With p the policy's probabilities, W its output projection and y the label, nll = lse - <W_y, x>, whose gradient on the
logits is p - onehot(y). With q the frozen reference's probabilities, the gradient of KL(q || p) is p - q. For a sum
over tokens the forward pass computes the gradients on hidden states and weight at once; for a value per token the
vectors are recomputed in the backward pass (`dipo_lightning.losses.chunking`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, kl_div

from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.losses.chunking import (
    ClosedForm,
    WeightGradient,
    align,
    check_projection,
    global_mean,
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
        labels: (N,) int64 tokens, all in [0, V), since unsupervised positions were not selected.

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


def weighted_ascent(nll: Tensor, beta1: float, beta2: float = 0.0, denominator: float | Tensor | None = None) -> Tensor:
    """Compute -mean(p^beta1 (1 - p)^beta2 NLL) with p the token's probability; no gradient flows through the weight.

    The factor of beta1, saturation, takes weight from tokens that are already unlikely, which brakes the ascent. The
    factor of beta2, importance, takes it from tokens that are nearly certain, such as those that grammar dictates.
    Sources: WGA, arXiv 2502.19301 (beta2 is 0); SatImp, arXiv 2505.11953.

    Args:
        nll: (N,) NLL of the answer tokens in nats.
        beta1: Exponent of saturation, 0 or more.
        beta2: Exponent of importance, 0 or more.
        denominator: Global token count; None is N.
    """
    constant = nll.detach()
    weight = torch.exp(-beta1 * constant) * (-torch.expm1(-constant)) ** beta2
    return -global_mean(weight * nll, denominator)


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
    return _run(_TokenNLL, *_checked(hidden, weight, chunk_size), labels, chunk_size)


def chunked_nll_sum(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int = 1024) -> Tensor:
    """Compute ``chunked_nll(...).sum()``, with one projection less if there are several chunks."""

    def write(chunk: slice, hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        return _residuals(hidden[chunk], weight, labels[chunk], out)

    return _run(_Summed, *_checked(hidden, weight, chunk_size), write, chunk_size)


def chunked_kl_sum(
    hidden: Tensor, weight: Tensor, reference_hidden: Tensor, reference_weight: Tensor, chunk_size: int = 1024
) -> Tensor:
    """Sum KL(reference || policy) over positions; equal to ``token_kl(...).sum()`` on the logits of both.

    Args:
        hidden: (N, H) last hidden states of the policy (after the final norm) at the selected positions.
        weight: (V, H) its output projection, without bias or soft cap.
        reference_hidden: (N, G) last hidden states of the frozen reference at the same positions; without gradient.
        reference_weight: (V, G) the reference's output projection; it gets no gradient.
        chunk_size: Positions whose vocabulary-sized values may live at the same time.

    Returns:
        Scalar, nats, float32 (float64 for a float64 policy), differentiable once in `hidden` and `weight`.

    Raises:
        InputError: Shapes do not fit.
    """
    hidden, weight = _checked(hidden, weight, chunk_size)
    check_projection(reference_hidden, reference_weight, "reference")
    frozen, frozen_weight = align(reference_hidden.detach(), reference_weight.detach())
    if len(frozen) != len(hidden) or len(frozen_weight) != len(weight):
        raise InputError(
            f"the policy has {len(hidden)} positions and {len(weight)} tokens, the reference {len(frozen)} and "
            f"{len(frozen_weight)}; give the same of both"
        )

    space = vocabulary_buffer(frozen, frozen_weight, piece_size(frozen.device, chunk_size), hidden)

    def write(chunk: slice, hidden: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        reference = project(frozen[chunk], frozen_weight, space[: len(out)])
        return _differences(project(hidden[chunk], weight, out), reference.to(out.dtype))

    return _run(_Summed, hidden, weight, write, chunk_size)


def _checked(hidden: Tensor, weight: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Check the policy's part, and cast it to the dtype of the computation."""
    check_numbers("", {"chunk_size": chunk_size})
    check_projection(hidden, weight, "policy")
    return align(hidden, weight)


def _run(function: type[torch.autograd.Function], hidden: Tensor, weight: Tensor, target: Any, size: int) -> Tensor:
    """Run outside autocast; ``target`` is the function's third argument."""
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = function.apply(hidden, weight, target, size)
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
        # The softmax at the largest logit is 1 / sum exp(h - top), so two maxima, the cheapest passes, give the lse.
        values.append((top - probability.amax(-1, keepdim=True).log() - chosen).squeeze(-1))
        probability.scatter_add_(-1, places, torch.full_like(chosen, -1.0))
    return torch.cat(values)


def _differences(policy: Tensor, reference: Tensor) -> Tensor:
    """Replace policy logits (n, V) by policy - reference probabilities, and return KL(reference || policy) (n,).

    Both are overwritten.
    """
    torch.log_softmax(policy, -1, out=policy)
    torch.log_softmax(reference, -1, out=reference)
    gain = reference - policy
    probability = reference.exp_()
    policy.exp_().sub_(probability)
    return gain.mul_(probability).sum(-1)


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


class _Summed(torch.autograd.Function):
    """Sum of a loss over all tokens: with one upstream gradient for all, the forward pass computes both gradients."""

    # torch.nn.functional.linear_cross_entropy works in the same way and, with the same chunks in float32, is as fast
    # (with its own chunks, 6 times as slow on a CPU). But its loss has the input's dtype: 3 digits in bfloat16.

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, write: Callable[..., Tensor], chunk_size: int) -> Tensor:
        """Compute the sum () and, if they are needed, both its gradients, chunk by chunk.

        Args:
            ctx: Autograd's context.
            hidden: (N, H).
            weight: (V, H).
            write: Called with a slice of n positions, hidden, weight and a buffer (n, V); writes the gradient on the
                logits into the buffer, and returns the losses (n,).
            chunk_size: Number of positions whose vocabulary-sized values may live at the same time.
        """
        for_hidden, for_weight, *_ = ctx.needs_input_grad
        chunk_size = piece_size(hidden.device, chunk_size)  # no chunk is kept, so small ones are as fast on a CPU
        buffer = vocabulary_buffer(hidden, weight, chunk_size)
        total = hidden.new_zeros((), dtype=buffer.dtype)
        grad_hidden, grad_weight = torch.empty_like(hidden) if for_hidden else None, WeightGradient(weight)
        for chunk in slices(len(hidden), chunk_size):
            out = buffer[: chunk.stop - chunk.start]
            total += write(chunk, hidden, weight, out).sum()
            on_logits = out.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = on_logits @ weight
            if for_weight:
                grad_weight.add(on_logits, hidden[chunk])
        ctx.save_for_backward(grad_hidden, grad_weight.result() if for_weight else None)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients from the forward pass by ``upstream`` (), in place; autograd allows this once."""
        scaled = (None if value is None else value.mul_(upstream) for value in ctx.saved_tensors)
        return *scaled, None, None
