"""How much of the forget answers the model still produces, token by token."""

from __future__ import annotations

from torch import Tensor

from dipo_lightning.metrics.rows import MeanOverRows


class ExactMemorization(MeanOverRows):
    """Mean share of answer tokens whose most probable prediction is right."""

    def update(self, index: Tensor, exact_memorization: Tensor) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            exact_memorization: (B,) from `functional.exact_memorization`.
        """
        self._append(index=index, value=exact_memorization)


class ExtractionStrength(MeanOverRows):
    """Mean of 1 - k/n, k the shortest prefix after which the model continues an answer by itself."""

    def update(self, index: Tensor, extraction_strength: Tensor) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            extraction_strength: (B,) from `functional.extraction_strength`.
        """
        self._append(index=index, value=extraction_strength)
