"""What a pair of distributions is made with: one validated value, shared by the plain and the fast code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from dipo_lightning.errors import InputError

Selection = Literal["top_k", "top_p", "relative"]
MemoryVector = Literal["centered", "raw"]


@dataclass(frozen=True)
class PairOptions:
    """How the preferred and the dispreferred distribution are made from base logits.

    The published text gives the idea (amplify or suppress high-confidence logits); these forms are this package's.

    Attributes:
        selection: which tokens are high-confidence: the `k` largest logits (`top_k`), the smallest set of most likely
            tokens whose probability reaches `p` (`top_p`), or every token at least `rho` times as likely as the most
            likely one (`relative`).
        k: set size for `top_k`.
        p: probability to reach for `top_p`, in (0, 1).
        rho: share of the largest probability for `relative`, in (0, 1].
        memory_vector: `centered` (logit minus the largest logit outside the set; a constant added to all logits
            changes nothing) or `raw` (the logit itself).
        alpha: strength, > 0. With `centered`, 1 pulls the whole set down to the largest logit outside it.
    """

    selection: Selection = "top_k"
    k: int = 10
    p: float = 0.9
    rho: float = 0.1
    memory_vector: MemoryVector = "centered"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            InputError: naming the option, its value and what is allowed.
        """
        check_selection(self.selection, self.k, self.p, self.rho)
        if self.memory_vector not in get_args(MemoryVector):
            raise InputError(f"memory_vector is {self.memory_vector!r}; use one of {list(get_args(MemoryVector))}")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"alpha is {self.alpha!r}; use a finite number > 0 (at 0 the pair is no pair)")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check against a vocabulary.

        Args:
            vocab_size: width V of the logits.

        Raises:
            InputError: when `top_k` would select the whole vocabulary, or the vocabulary has a single token.
        """
        check_set_size(self.selection, self.k, vocab_size)


def check_selection(selection: str, k: int, p: float, rho: float) -> None:
    """Check a selection and its number.

    Raises:
        InputError: naming the option, its value and what is allowed.
    """
    if selection not in get_args(Selection):
        raise InputError(f"selection is {selection!r}; use one of {list(get_args(Selection))}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k is {k!r}; use a whole number >= 1")
    if not 0 < p < 1:
        raise InputError(f"p is {p!r}; use a probability with 0 < p < 1 (at 1 no token would be left outside the set)")
    if not 0 < rho <= 1:
        raise InputError(f"rho is {rho!r}; use a share with 0 < rho <= 1")


def check_set_size(selection: str, k: int, vocab_size: int) -> None:
    """Check that some token stays outside the set.

    Raises:
        InputError: when none can.
    """
    if vocab_size < 2:
        raise InputError(f"the vocabulary has {vocab_size} token(s); a pair of distributions needs at least 2")
    if selection == "top_k" and k >= vocab_size:
        raise InputError(
            f"k is {k} but the vocabulary has {vocab_size} tokens; use k < {vocab_size}, so that a token stays outside"
        )
