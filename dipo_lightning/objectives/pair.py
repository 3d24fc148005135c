"""The pair of distributions: forgetting-promoting (preferred) and memory-promoting (dispreferred).

With base logits h, the confident set S and the memory vector m (zero outside S)

    preferred    = softmax(h - alpha * m)
    dispreferred = softmax(h + alpha * m)

The idea is that of "Distribution Preference Optimization" (arXiv 2510.04773); the selection rules and the two forms of
m are this package's reconstruction. `distribution_pair` is the plain form to read and to test against; training uses
`pair_difference`, which gives the same numbers from one softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.objectives.factored import factor
from dipo_lightning.objectives.options import (
    MemoryVector,
    PairOptions,
    Selection,
    check_selection,
    check_set_size,
)

__all__ = [
    "MemoryVector",
    "PairOptions",
    "Selection",
    "confident_set",
    "distribution_pair",
    "memory_vector",
    "pair_difference",
    "pair_parts",
    "working_dtype",
]


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Name the dtype that probabilities are computed in: float64 where any input is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def confident_set(
    logits: Tensor, selection: Selection = "top_k", k: int = 10, p: float = 0.9, rho: float = 0.1
) -> Tensor:
    """Select the high-confidence tokens of each position.

    One token always stays outside (the one with the smallest logit, where a rule would take everything), because the
    centered memory vector is measured from the largest logit outside.

    Args:
        logits: (N, V) base logits.
        selection: `top_k`, `top_p` or `relative`; see `PairOptions`.
        k: set size for `top_k`, 1 <= k < V.
        p: probability to reach for `top_p`.
        rho: share of the largest probability for `relative`.

    Returns:
        (N, V) bool. Equal logits at the edge of a set are taken in the order of their index.

    Raises:
        InputError: when an option is out of range.
    """
    check_selection(selection, k, p, rho)
    check_set_size(selection, k, logits.shape[-1])
    logits = logits.to(working_dtype(logits))
    order = logits.argsort(dim=-1, descending=True, stable=True)
    ranked = logits.softmax(-1).gather(-1, order)
    if selection == "top_k":
        chosen = torch.arange(logits.shape[-1], device=logits.device).expand_as(order) < k
    elif selection == "top_p":
        before = ranked.cumsum(-1).roll(1, dims=-1)
        before[..., 0] = 0
        chosen = before < p
    else:
        chosen = ranked >= rho * ranked[..., :1]
    chosen[..., -1] = False
    return torch.zeros_like(chosen).scatter(-1, order, chosen)


def memory_vector(logits: Tensor, confident: Tensor, kind: MemoryVector = "centered") -> Tensor:
    """Compute what is suppressed or amplified.

    Args:
        logits: (N, V) base logits.
        confident: (N, V) bool, the confident set.
        kind: `centered`: logit - tau on the set, tau being the largest logit outside it; `raw`: the logit itself.
            Softmax ignores a constant added to all logits; `raw` does not, and amplifies where it should suppress when
            the logits are negative.

    Returns:
        (N, V), zero outside the set.

    Raises:
        InputError: when `kind` is unknown, or `centered` meets a set that leaves no token outside.
    """
    if kind == "raw":
        return logits.masked_fill(~confident, 0.0)
    if kind != "centered":
        raise InputError(f"memory_vector is {kind!r}; use 'centered' or 'raw'")
    if bool(confident.all(-1).any()):
        raise InputError("a confident set holds the whole vocabulary; leave at least one token outside")
    tau = logits.masked_fill(confident, -math.inf).amax(-1, keepdim=True)
    return (logits - tau).masked_fill(~confident, 0.0)


def distribution_pair(logits: Tensor, options: PairOptions) -> tuple[Tensor, Tensor]:
    """Build both distributions, the plain way.

    Args:
        logits: (N, V) base logits; bfloat16 and float16 are raised to float32. Gradients are not followed: the pair is
            a target.
        options: how the pair is made.

    Returns:
        (N, V) log-probabilities of the preferred and of the dispreferred distribution.

    Raises:
        InputError: when the options do not fit the vocabulary.
    """
    logits = logits.detach().to(working_dtype(logits))
    confident = confident_set(logits, options.selection, options.k, options.p, options.rho)
    shift = options.alpha * memory_vector(logits, confident, options.memory_vector)
    return (logits - shift).log_softmax(-1), (logits + shift).log_softmax(-1)


def pair_difference(logits: Tensor, options: PairOptions) -> Tensor:
    """Compute preferred minus dispreferred, from one softmax and a correction on the confident set.

    Args:
        logits: (N, V) finite base logits; bfloat16 and float16 are raised to float32. Gradients are not followed.
        options: how the pair is made.

    Returns:
        (N, V) difference d; each row sums to 0.

    Raises:
        InputError: when the options do not fit the vocabulary.
    """
    options.check_vocabulary(logits.shape[-1])
    base = logits.detach().to(working_dtype(logits))
    if not len(base):
        return torch.zeros_like(base)
    pair = factor(base, options)
    return pair.dense(pair.preferred - pair.dispreferred, in_place=True)


def pair_parts(logits: Tensor, options: PairOptions, reference_logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute both distributions minus the reference's, which is what the rewards need.

    Args:
        logits: (N, V) finite base logits of the pair.
        options: how the pair is made.
        reference_logits: (N, V) logits of the reference where the pair is made from others (the policy's).

    Returns:
        (N, V) preferred - reference and (N, V) dispreferred - reference; their difference is `pair_difference`.

    Raises:
        InputError: when the options do not fit the vocabulary.
    """
    options.check_vocabulary(logits.shape[-1])
    base = logits.detach().to(working_dtype(logits))
    if not len(base):
        return torch.zeros_like(base), torch.zeros_like(base)
    pair = factor(base, options)
    if reference_logits is None:
        return pair.dense(pair.preferred - pair.base), pair.dense(pair.dispreferred - pair.base, in_place=True)
    reference = reference_logits.detach().to(base.dtype).softmax(-1)
    return pair.dense(pair.preferred) - reference, pair.dense(pair.dispreferred, in_place=True) - reference
