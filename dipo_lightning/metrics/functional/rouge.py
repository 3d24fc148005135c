"""ROUGE-L of texts, row by row (Lin, 2004): equal to the `rouge-score` package for ASCII, and right for any script."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dipo_lightning.metrics.functional.words import words

_BLOCK = 4096  # words of one text that are compared at a time: 512 bytes of bits per distinct word


class RougeL(NamedTuple):
    """ROUGE-L of each row: `recall` and `f1`, (B,) float64 between 0 and 1."""

    recall: Tensor
    f1: Tensor


def rouge_l(predictions: Sequence[str], targets: Sequence[str], stemmer: bool = True) -> RougeL:
    """ROUGE-L recall and F1 of each prediction against its target, over the words that `words` finds.

    Args:
        predictions: B texts.
        targets: B texts to find in them.
        stemmer: Compare Porter stems (TOFU does, MUSE does not).

    Returns:
        Recall and F1, each (B,) float64; 0 where either text has no letter or digit.

    Raises:
        ValueError: There are not as many predictions as targets, or one text was given instead of a list of texts.
    """
    if isinstance(predictions, str) or isinstance(targets, str):
        raise ValueError("rouge_l compares lists of texts, got one text")
    if len(predictions) != len(targets):
        raise ValueError(f"as many predictions as targets are needed, got {len(predictions)} and {len(targets)}")
    recall, f1 = [], []
    for prediction, target in zip(predictions, targets, strict=True):
        said, wanted = words(prediction, stemmer), words(target, stemmer)
        common = common_length(said, wanted)
        recall.append(common / len(wanted) if wanted else 0.0)
        f1.append(2 * common / (len(said) + len(wanted)) if common else 0.0)
    return RougeL(torch.tensor(recall, dtype=torch.float64), torch.tensor(f1, dtype=torch.float64))


def common_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, in memory linear in both lengths.

    Bit-parallel (Hyyrö, 2004, "Bit-parallel LCS-length computation revisited"): a zero bit of `row` stands for a word
    of `first` at which the length grows. Blocks of `first` pass the carry of each addition on to the next.

    Args:
        first: n words.
        second: m words.

    Returns:
        An integer between 0 and min(n, m), in n m / 64 steps of the processor.
    """
    carries = bytearray(len(second))
    length = 0
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        places: dict[Hashable, int] = {}
        for place, word in enumerate(block):
            places[word] = places.get(word, 0) | 1 << place
        row = ones = (1 << len(block)) - 1
        for number, word in enumerate(second):
            found = row & places.get(word, 0)
            total = row + found + carries[number]
            carries[number] = total >> len(block)
            row = (total | (row - found)) & ones
        length += len(block) - row.bit_count()
    return length
