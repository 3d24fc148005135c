"""Metrics of generated texts: ROUGE-L recall, fluency and perplexity (TOFU), VerbMem and KnowMem (MUSE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dipo_lightning.metrics.functional.fluency import ngram_entropy, perplexity
from dipo_lightning.metrics.functional.muse import muse_scale, muse_stemmer
from dipo_lightning.metrics.functional.rouge import rouge_l
from dipo_lightning.metrics.rows import MeanOverRows, RowValues, mean_or_nan


class ROUGERecall(MeanOverRows):
    """Mean ROUGE-L recall of generations against answers.

    Args:
        stemmer: Compare Porter stems, as TOFU does.
        nan: See `RowValues`.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    def __init__(self, stemmer: bool = True, nan: Literal["skip", "raise"] = "skip", **kwargs: Any) -> None:
        super().__init__(nan=nan, **kwargs)
        self.stemmer = stemmer

    def update(self, index: Tensor, generations: Sequence[str], answers: Sequence[str]) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            generations: B texts of the model.
            answers: B texts to find in them.
        """
        self._append(index=index, value=rouge_l(generations, answers, stemmer=self.stemmer).recall)


class Fluency(MeanOverRows):
    """Mean n-gram entropy of generations, in bits (`functional.ngram_entropy`)."""

    higher_is_better = True

    def update(self, index: Tensor, generations: Sequence[str]) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            generations: B texts of the model.
        """
        self._append(index=index, value=ngram_entropy(generations))


class Perplexity(RowValues):
    """Perplexity of the generations under the model that said them: the exponential of the mean NLL of all tokens."""

    higher_is_better = False
    columns = ("nll", "tokens")

    def update(self, index: Tensor, nll: Tensor, tokens: Tensor) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            nll: (B,) mean token NLL of the generations in nats.
            tokens: (B,) how many tokens they have; where nothing was said the row counts nothing.
        """
        self._append(index=index, nll=torch.where(tokens > 0, nll, torch.zeros_like(nll)), tokens=tokens)

    def compute(self) -> Tensor:
        """Perplexity, 1 or more; NaN where nothing was said."""
        rows = self._scored()
        return perplexity(rows["nll"], rows["tokens"]) if rows["nll"].numel() else mean_or_nan(rows["nll"])


class _MuseRouge(MeanOverRows):
    """Mean ROUGE-L F1 in MUSE's or open-unlearning's manner.

    Args:
        variant: `muse`: stemmer off, in percent; `open_unlearning`: stemmer on, between 0 and 1.
        nan: See `RowValues`.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    def __init__(self, variant: str = "muse", nan: Literal["skip", "raise"] = "skip", **kwargs: Any) -> None:
        super().__init__(nan=nan, **kwargs)
        self.scale = muse_scale(variant)
        self.stemmer = muse_stemmer(variant)

    def update(self, index: Tensor, generations: Sequence[str], targets: Sequence[str]) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            generations: B texts of the model, cut as the benchmark says.
            targets: B texts to compare them with.
        """
        self._append(index=index, value=rouge_l(generations, targets, stemmer=self.stemmer).f1)

    def compute(self) -> Tensor:
        """Mean F1, in percent or between 0 and 1; NaN where there is no row."""
        return self.scale * super().compute()


class VerbMem(_MuseRouge):
    """Verbatim memorisation: the greedy continuation of a prompt against the true one, ROUGE-L F1.

    Cut both at 128 tokens before.
    """


class KnowMem(_MuseRouge):
    """Knowledge memorisation: the greedy answer to a question against the true one, ROUGE-L F1."""
