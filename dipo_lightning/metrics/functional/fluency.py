"""Fluency and perplexity of a model's own answers: how varied their words are, and how sure of them the model was.

A model that was pushed too far repeats itself (the entropy falls) or strings words together (the perplexity rises).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from dipo_lightning.metrics.functional.words import chunks

NGRAM_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Sizes of the n-grams and the weight of each entropy (Meng et al., 2022, arXiv 2202.05262, section 3.3)."""


def ngram_entropy(texts: Sequence[str]) -> Tensor:
    """Fluency of each text: the weighted mean of the entropies of its bigrams and trigrams of words.

    From Zhang et al. (2018, arXiv 1809.05972), weighted as Meng et al. (2022) do. Words are what white space separates,
    and characters where a script writes no spaces. It grows with the length (a text of m distinct words has log2(m - 1)
    bits of bigrams), so compare the answers of two models to the same questions.

    Args:
        texts: B texts.

    Returns:
        (B,) float64 bits, 0 or more; 0 for a text that says one thing only, or fewer than three words.

    Raises:
        ValueError: One text was given instead of a list of texts.
    """
    if isinstance(texts, str):
        raise ValueError("ngram_entropy measures lists of texts, got one text")
    return torch.tensor([_entropy(chunks(text)) for text in texts], dtype=torch.float64)


def _entropy(words: Sequence[str]) -> float:
    total = 0.0
    for size, weight in NGRAM_WEIGHTS.items():
        counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
        frequency = torch.tensor(list(counts.values()), dtype=torch.float64)
        frequency = frequency / frequency.sum()
        total += weight * float(torch.special.entr(frequency).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    return total / len(NGRAM_WEIGHTS)


def perplexity(nll: Tensor, tokens: Tensor) -> Tensor:
    """Perplexity of several texts together: the exponential of their mean NLL per token.

    Args:
        nll: (B,) mean token NLL of each text in nats.
        tokens: (B,) number of tokens of each, 0 or more; one without tokens counts nothing, whatever its NLL.

    Returns:
        Scalar of the dtype of `nll`, 1 or more; NaN where there is no token.
    """
    said = tokens > 0
    total = (nll[said] * tokens[said]).sum()
    return torch.exp(total / tokens[said].sum())
