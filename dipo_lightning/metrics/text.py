"""Metrics of generated texts: ROUGE-L recall (TOFU), VerbMem and KnowMem (MUSE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from dipo_lightning.metrics.functional.muse import muse_scale, muse_stemmer
from dipo_lightning.metrics.functional.rouge import rouge_l
from dipo_lightning.metrics.rows import MeanOverRows


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
