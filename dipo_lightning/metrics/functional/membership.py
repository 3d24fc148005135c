"""Membership inference: scores of texts beside Min-K, and how well a score tells members from others.

Every score is like a loss: low for a text the model has seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


def zlib_score(nll: Tensor, texts: Sequence[str]) -> Tensor:
    """Loss per compressed byte (Carlini et al., 2021): sets apart what is probable from what is merely repetitive.

    Args:
        nll: (B,) mean token NLL of the texts in nats.
        texts: B texts.

    Returns:
        (B,) `nll / len(zlib(text))`.

    Raises:
        ValueError: There are not as many texts as losses.
    """
    if len(texts) != nll.numel():
        raise ValueError(f"as many texts as losses are needed, got {len(texts)} and {nll.numel()}")
    sizes = [len(zlib.compress(text.encode("utf-8"))) for text in texts]
    return nll / torch.tensor(sizes, dtype=nll.dtype, device=nll.device)


def rank_auc(positive: Tensor, negative: Tensor) -> Tensor:
    """P(negative < positive) + P(negative = positive) / 2 over all pairs: the exact area under the ROC curve.

    The scores are only ranked, never squashed into [0, 1]: a sigmoid would saturate and make distinct scores equal.

    Args:
        positive: (n,) scores without NaN.
        negative: (m,) scores without NaN.

    Returns:
        Scalar float64 (float32 on mps) between 0 and 1; NaN where a sample is empty.
    """
    precision = torch.float32 if positive.device.type == "mps" else torch.float64
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive.contiguous(), right=False)
    not_above = torch.searchsorted(ordered, positive.contiguous(), right=True)
    return (below + not_above).sum().to(precision) / (2 * positive.numel() * negative.numel())


def membership_auc(members: Tensor, others: Tensor) -> Tensor:
    """Area under the ROC curve of a loss-like score: 1 when all members score lower, 0.5 when nothing can be told.

    This is the sense in which open-unlearning reports attacks; PrivLeak's is the other way round (`privleak_auc`).

    Args:
        members: (n,) scores of the texts that were trained on.
        others: (m,) scores of texts that were not.

    Returns:
        Scalar P(member < other), ties counted half; NaN where a sample is empty.
    """
    return rank_auc(others, members)
