"""ROUGE-L of texts, row by row (Lin, 2004), as the `rouge-score` package gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class RougeL(NamedTuple):
    """ROUGE-L of each row: `recall` and `f1`, (B,) float64 between 0 and 1."""

    recall: Tensor
    f1: Tensor


def rouge_l(predictions: Sequence[str], targets: Sequence[str], stemmer: bool = True) -> RougeL:
    """ROUGE-L recall and F1 of each prediction against its target.

    Args:
        predictions: B texts.
        targets: B texts to find in them.
        stemmer: Compare Porter stems (TOFU does, MUSE does not).

    Returns:
        Recall and F1, each (B,) float64; 0 where either text has no letter or digit.

    Raises:
        ValueError: There are not as many predictions as targets, or one text was given instead of a list of texts.
    """
    # Imported here: it pulls in the whole text package, which the other functions do without.
    from torchmetrics.functional.text import rouge_score

    if isinstance(predictions, str) or isinstance(targets, str):
        raise ValueError("rouge_l compares lists of texts, got one text")
    if len(predictions) != len(targets):
        raise ValueError(f"as many predictions as targets are needed, got {len(predictions)} and {len(targets)}")
    # One pair a call: the function returns the mean over its rows.
    scores = [
        rouge_score(prediction, target, use_stemmer=stemmer, rouge_keys="rougeL")
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    return RougeL(
        recall=torch.tensor([float(score["rougeL_recall"]) for score in scores], dtype=torch.float64),
        f1=torch.tensor([float(score["rougeL_fmeasure"]) for score in scores], dtype=torch.float64),
    )
