"""Membership inference over all rows: AUC of a score, and PrivLeak."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dipo_lightning.metrics import functional
from dipo_lightning.metrics.rows import RowValues

_OTHER, _MEMBER = 0, 1


class _TwoSamples(RowValues):
    """Scores of texts that were trained on and of texts that were not; each sample has indices of its own."""

    keys = ("group", "index")
    columns = ("score",)

    def update(self, index: Tensor, score: Tensor, member: Tensor | bool) -> None:
        """Add rows.

        Args:
            index: (B,) row indices within their set.
            score: (B,) loss-like scores, low for texts the model has seen.
            member: (B,) bool, or one for all: whether the rows are of the forget set (True) or held out (False).
        """
        group = torch.as_tensor(member, device=torch.as_tensor(index).device).expand_as(torch.as_tensor(index))
        self._append(group=torch.where(group.bool(), _MEMBER, _OTHER), index=index, score=score)

    def _samples(self) -> tuple[Tensor, Tensor]:
        rows = self._scored()
        return rows["score"][rows["group"] == _MEMBER], rows["score"][rows["group"] == _OTHER]


class MembershipAUC(_TwoSamples):
    """Exact AUC of a membership attack: 1 when all members score lower than the others, 0.5 when nothing is told."""

    def compute(self) -> Tensor:
        """P(member < other), ties counted half; NaN while a sample is empty."""
        members, others = self._samples()
        return functional.membership_auc(members, others)


class PrivLeak(_TwoSamples):
    """MUSE's PrivLeak in percent: 0 is what the retain model shows, very negative is under-unlearned.

    Args:
        auc_retrain: MUSE's AUC of the retain model, P(s_holdout < s_forget); `functional.PUBLISHED_RETRAIN_AUC` has
            those of the published models. There is no default: a silent 0.5 would be another metric.
        nan: See `RowValues`.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    def __init__(self, auc_retrain: float, nan: Literal["skip", "raise"] = "skip", **kwargs: Any) -> None:
        super().__init__(nan=nan, **kwargs)
        functional.privleak(auc_retrain, auc_retrain)  # refuses what cannot be divided by before anything is measured
        self.auc_retrain = float(auc_retrain)

    def compute(self) -> Tensor:
        """PrivLeak in percent; NaN while a sample is empty."""
        forget, holdout = self._samples()
        value = functional.privleak(functional.privleak_auc(forget, holdout), self.auc_retrain)
        return torch.tensor(value, dtype=self._float, device=self.device)
