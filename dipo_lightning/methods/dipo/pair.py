"""The pair of distributions: one suppresses the memory (preferred), the other amplifies it (dispreferred).

With base logits h, the confident set S and the memory vector m (zero outside S)

    preferred    = softmax(h - alpha * m)
    dispreferred = softmax(h + alpha * m)

or, with ``memory_vector: contrast``, m = max(0, log p(z | question) - log p(z | no question)) of all tokens.

The idea is that of "Distribution Preference Optimization" (arXiv 2510.04773); the selection rules and the forms of m
are this package's reconstruction. `make_pair` is the definition, against which everything else is tested; the
accelerated versions (`factor`, `kernels`, `directions`) give the same numbers from one softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dipo_lightning.errors import InputError, check_fields
from dipo_lightning.losses.chunking import working_dtype

Source = Literal["reference", "policy"]
Selection = Literal["top_k", "top_p", "relative"]
MemoryVector = Literal["centered", "raw", "contrast"]
Weighting = Literal["uniform", "entropy"]


@dataclass(frozen=True)
class PairOptions:
    """Options by which the preferred and the dispreferred distribution are made from base logits.

    The published text gives the idea (amplify or suppress high-confidence logits); these forms are this package's.

    Attributes:
        selection: Rule for the confident set: the k largest logits (``top_k``), the smallest set of most likely tokens
            whose probability reaches p (``top_p``), or every token at least rho times as likely as the most likely one
            (``relative``).
        k: Size of the set for ``top_k``.
        p: Probability to reach for ``top_p``, in (0, 1).
        rho: Fraction of the largest probability for ``relative``, in (0, 1].
        memory_vector: ``centered`` (logit minus the largest logit outside the set; a constant added to all logits
            changes nothing), ``raw`` (the logit itself), or ``contrast``: the log-probability that each token gains
            from the question, 0 where it gains none. For ``contrast`` a second pass of the reference masks the
            question's tokens, and no set is selected.
        alpha: Strength of suppression and amplification, above 0; with ``centered``, 1 pulls the whole set down to the
            largest logit outside it. The margin grows with it: a smaller alpha needs a larger beta.
        weighting: ``uniform``: alpha at every position; ``entropy``: alpha times the entropy of the base distribution
            there, in bits and at most 1, so that the pair differs less where the model is certain.
        source: Model whose logits the pair is made from: ``reference``, or ``policy`` (taken as constants).
    """

    selection: Selection = "relative"
    k: int = 10
    p: float = 0.9
    rho: float = 0.1
    memory_vector: MemoryVector = "centered"
    alpha: float = 0.2
    weighting: Weighting = "uniform"
    source: Source = "reference"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: Naming the option, its value and the allowed values.
        """
        check_fields("pair", self)
        if self.memory_vector == "contrast" and self.source == "policy":
            raise InputError(
                "memory_vector is contrast, which compares two views of the reference model: write source: reference"
            )
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise InputError(f"k is {self.k!r}; use a whole number >= 1")
        if not 0 < self.p < 1:
            raise InputError(f"p is {self.p!r}; use 0 < p < 1 (at 1 no token would be left outside the set)")
        if not 0 < self.rho <= 1:
            raise InputError(f"rho is {self.rho!r}; use a share with 0 < rho <= 1")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"alpha is {self.alpha!r}; use a finite number > 0 (at 0 the two distributions are equal)")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise an `InputError` if a vocabulary of `vocab_size` tokens leaves none outside the set."""
        if vocab_size < 2:
            raise InputError(f"the vocabulary has {vocab_size} token(s); a pair of distributions needs at least 2")
        if self.memory_vector != "contrast" and self.selection == "top_k" and self.k >= vocab_size:
            raise InputError(
                f"k is {self.k} but the vocabulary has {vocab_size} tokens; use k < {vocab_size}, so that a token "
                "stays outside"
            )


def confident_set(logits: Tensor, options: PairOptions) -> Tensor:
    """Select the high-confidence tokens of each position.

    The token with the smallest logit always stays outside, even if a rule would take everything, because the centered
    memory vector is measured from the largest logit outside.

    Args:
        logits: (N, V) base logits.
        options: Selection and its number.

    Returns:
        (N, V) bool. Equal logits at the edge of a set are taken in the order of their index.

    Raises:
        InputError: The set would be the whole vocabulary.
    """
    options.check_vocabulary(logits.shape[-1])
    logits = logits.to(working_dtype(logits))
    order = logits.argsort(dim=-1, descending=True, stable=True)
    ranked = logits.softmax(-1).gather(-1, order)
    if options.selection == "top_k":
        chosen = torch.arange(logits.shape[-1], device=logits.device).expand_as(order) < options.k
    elif options.selection == "top_p":
        before = ranked.cumsum(-1).roll(1, dims=-1)
        before[..., 0] = 0
        chosen = before < options.p
    else:
        chosen = ranked >= options.rho * ranked[..., :1]
    chosen[..., -1] = False
    return torch.zeros_like(chosen).scatter(-1, order, chosen)


def memory_vector(logits: Tensor, confident: Tensor, kind: MemoryVector = "centered") -> Tensor:
    """Compute the memory vector, which is suppressed or amplified.

    Args:
        logits: (N, V) base logits.
        confident: (N, V) bool, the confident set.
        kind: `centered`: logit - tau on the set, tau being the largest logit outside it; `raw`: the logit itself.
            Softmax ignores a constant added to all logits; `raw` does not, and where the logits are negative it
            amplifies instead of suppressing.

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


def contrast_vector(logits: Tensor, blind_logits: Tensor) -> Tensor:
    """Compute the log-probability that each token gains from the question, which the blind view cannot see; 0 if none.

    Args:
        logits: (N, V).
        blind_logits: (N, V) of the same model at the same positions, with the question masked.
    """
    return (logits.log_softmax(-1) - blind_logits.to(logits.dtype).log_softmax(-1)).clamp(min=0)


def strength(logits: Tensor, options: PairOptions) -> Tensor | float:
    """Return alpha, or with ``weighting: entropy`` the (N, 1) alphas of the positions of base logits (N, V)."""
    if options.weighting == "uniform":
        return options.alpha
    bits = torch.special.entr(logits.softmax(-1)).sum(-1, keepdim=True) / math.log(2)
    return options.alpha * bits.clamp(max=1)


def make_pair(logits: Tensor, options: PairOptions, blind_logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Build both distributions of each position.

    Args:
        logits: (N, V) base logits; bfloat16 and float16 are raised to float32. Gradients are not followed: the pair is
            a target.
        options: Selection, memory vector and strength.
        blind_logits: (N, V) of the view without the question, for ``contrast``.

    Returns:
        (N, V) log-probabilities of the preferred and of the dispreferred distribution.

    Raises:
        InputError: when the options do not fit the vocabulary, or ``contrast`` gets no blind view.
    """
    logits = logits.detach().to(working_dtype(logits))
    if options.memory_vector == "contrast":
        if blind_logits is None:
            raise InputError("memory_vector is contrast, which needs the logits without the question")
        vector = contrast_vector(logits, blind_logits.detach())
    else:
        vector = memory_vector(logits, confident_set(logits, options), options.memory_vector)
    shift = strength(logits, options) * vector
    return (logits - shift).log_softmax(-1), (logits + shift).log_softmax(-1)


_BLOCK = 64
_FIRST_GUESS = 64


@dataclass(frozen=True)
class Member:
    """One distribution in factored form.

    Attributes:
        mass: (N, 1) probability of all tokens outside the M largest.
        values: (N, M) probabilities of the M largest.
    """

    mass: Tensor
    values: Tensor

    def __sub__(self, other: Member) -> Member:
        """Difference of two members of the same factoring, itself in factored form."""
        return Member(self.mass - other.mass, self.values - other.values)


@dataclass(frozen=True)
class FactoredPair:
    """Base, preferred and dispreferred distribution of N positions.

    Attributes:
        outside: (N, V) the shared distribution outside the M largest logits; 0 on those.
        indices: (N, M) int64, the tokens with the M largest logits.
        logits: (N, M) these logits.
        normalizer: (N, 1) log-sum-exp of the logits outside.
        base: softmax of the logits.
        preferred: softmax of logits - alpha * memory vector.
        dispreferred: softmax of logits + alpha * memory vector.
    """

    outside: Tensor
    indices: Tensor
    logits: Tensor
    normalizer: Tensor
    base: Member
    preferred: Member
    dispreferred: Member

    def dense(self, member: Member, in_place: bool = False) -> Tensor:
        """Write a member out over the vocabulary.

        Args:
            member: One of this pair's members, or a difference of two.
            in_place: Write into `outside`, overwriting it.

        Returns:
            (N, V).
        """
        result = self.outside.mul_(member.mass) if in_place else self.outside * member.mass
        return result.scatter_(1, self.indices, member.values)


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the largest logits of each row, in descending order, like `torch.topk` and 2 to 3 times as fast.

    The `count` largest logits lie in the `count` blocks with the largest maxima, so a wide row is read once and sorted
    over a small part only. Among equal logits the choice is arbitrary, as in `torch.topk`.

    Returns:
        (N, count) values and (N, count) int64 indices, 1 <= count <= V.
    """
    positions, width = logits.shape
    blocks = width // _BLOCK
    if width % _BLOCK or count * 4 > blocks:
        return torch.topk(logits, count, dim=-1)
    blocked = logits.reshape(positions, blocks, _BLOCK)
    chosen = blocked.amax(-1).topk(count, dim=-1, sorted=False).indices
    candidates = blocked.gather(1, chosen.unsqueeze(-1).expand(-1, -1, _BLOCK)).flatten(1)
    values, places = candidates.topk(count, dim=-1)
    return values, chosen.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK


def _cut(logits: Tensor, options: PairOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Find the confident set among the largest logits.

    Returns:
        The M + 1 largest logits (N, M + 1), their indices, and the size of each row's set (N, 1), in [1, M].
    """
    limit = logits.shape[-1] - 1
    if options.selection == "top_k":
        values, indices = largest(logits, options.k + 1)
        return values, indices, torch.full_like(indices[:, :1], options.k)
    normalizer = logits.logsumexp(-1, keepdim=True) if options.selection == "top_p" else None
    guess = min(_FIRST_GUESS, limit)
    while True:
        values, indices = largest(logits, guess + 1)
        if normalizer is None:
            sizes = (values >= values[:, :1] + math.log(options.rho)).sum(-1, keepdim=True)
        else:
            sizes = ((values - normalizer).exp_().cumsum(-1) < options.p).sum(-1, keepdim=True) + 1
        if guess == limit or int(sizes.max()) <= guess:
            break
        guess = min(guess * 8, limit)
    sizes = sizes.clamp(max=limit)
    needed = int(sizes.max())
    return values[:, : needed + 1], indices[:, : needed + 1], sizes


def factor(logits: Tensor, options: PairOptions, in_place: bool = False) -> FactoredPair:
    """Build the pair of each position in factored form.

    Args:
        logits: (N, V) finite base logits, float32 or float64, N >= 1; nothing is differentiated through.
        options: Selection, memory vector and strength.
        in_place: Use the memory of `logits` for the result, overwriting them.

    Returns:
        The pair. The token with the smallest logit is never in the confident set, so that one is left outside.
    """
    values, indices, sizes = _cut(logits, options)
    inside, kept = values[:, :-1], indices[:, :-1]
    in_set = torch.arange(inside.shape[-1], device=logits.device) < sizes
    memory = inside if options.memory_vector == "raw" else inside - values.gather(1, sizes)
    shift = torch.where(in_set, strength(logits, options) * memory, torch.zeros_like(memory))
    rest = (logits if in_place else logits.clone()).scatter_(1, kept, -math.inf)
    outside = torch.softmax(rest, -1, out=rest)
    normalizer = values[:, -1:] - outside.gather(1, indices[:, -1:]).log()
    return FactoredPair(
        outside,
        kept,
        inside,
        normalizer,
        _normalize(normalizer, inside),
        _normalize(normalizer, inside - shift),
        _normalize(normalizer, inside + shift),
    )


def _normalize(outside: Tensor, inside: Tensor) -> Member:
    """Turn the outside's log-sum-exp (N, 1) and the inside's logits (N, M) into probabilities."""
    joint = torch.softmax(torch.cat([outside, inside], -1), -1)
    return Member(joint[:, :1], joint[:, 1:])


def pair_parts(logits: Tensor, options: PairOptions, reference_logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute both distributions minus the reference's, as the rewards need them.

    Args:
        logits: (N, V) finite base logits of the pair.
        options: Selection, memory vector and strength.
        reference_logits: (N, V) logits of the reference if the pair is made from other logits (the policy's).

    Returns:
        (N, V) preferred - reference and (N, V) dispreferred - reference.

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
