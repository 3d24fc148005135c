"""Metrics of answers' likelihoods: probability, truth ratio, forget quality, model utility (TOFU)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.metrics import functional
from dipo_lightning.metrics.functional.model_utility import UTILITY_SETS
from dipo_lightning.metrics.functional.truth_ratio import check_truth_ratio_variant
from dipo_lightning.metrics.rows import MeanOverRows, RowValues, mean_or_nan


class Probability(MeanOverRows):
    """Mean probability of the answers, `exp(-nll)`."""

    def update(self, index: Tensor, nll: Tensor) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            nll: (B,) mean token NLL of the answers in nats.
        """
        self._append(index=index, value=functional.answer_probability(_double(nll)))


class NormalizedProbability(MeanOverRows):
    """Mean share of the right answer's probability among its options.

    Args:
        variant: As of the truth ratio; `open_unlearning` adds 1e-10 to the denominator.
        nan: See `RowValues`.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, variant: str = "geometric", nan: Literal["skip", "raise"] = "skip", **kwargs: Any) -> None:
        check_truth_ratio_variant(variant)
        super().__init__(nan=nan, **kwargs)
        self.variant = variant

    def update(self, index: Tensor, nll: Tensor, wrong_nll: Tensor) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            nll: (B,) mean token NLL of the right answers in nats.
            wrong_nll: (B, K) the same of the wrong ones.
        """
        share = functional.normalized_probability(_double(nll), _double(wrong_nll), self.variant)
        self._append(index=index, value=share)


class _LogRatios(RowValues):
    """log R of each row."""

    columns = ("log_ratio",)

    def __init__(self, variant: str = "geometric", nan: Literal["skip", "raise"] = "skip", **kwargs: Any) -> None:
        check_truth_ratio_variant(variant)
        super().__init__(nan=nan, **kwargs)
        self.variant = variant

    def update(self, index: Tensor, correct_nll: Tensor, wrong_nll: Tensor) -> None:
        """Add rows.

        Args:
            index: (B,) row indices.
            correct_nll: (B,) mean token NLL of the correct (paraphrased) answers in nats.
            wrong_nll: (B, K) the same of the wrong ones.
        """
        log_ratio = functional.log_truth_ratio(_double(correct_nll), _double(wrong_nll), self.variant)
        self._append(index=index, log_ratio=log_ratio)


class TruthRatio(_LogRatios):
    """Truth ratio of a set.

    Args:
        aggregate: `forget`: mean of min(R, 1/R); `utility`: mean of max(0, 1 - R).
        variant: `geometric`, `arithmetic` or `open_unlearning`.
        nan: See `RowValues`.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(
        self,
        aggregate: Literal["forget", "utility"] = "forget",
        variant: str = "geometric",
        nan: Literal["skip", "raise"] = "skip",
        **kwargs: Any,
    ) -> None:
        super().__init__(variant=variant, nan=nan, **kwargs)
        if aggregate not in ("forget", "utility"):
            raise InputError(f"aggregate={aggregate!r} is not an option: choose forget or utility")
        self.aggregate = aggregate

    def compute(self) -> Tensor:
        """Truth ratio between 0 and 1; NaN where no row can be scored."""
        log_ratio = self._scored()["log_ratio"]
        if not log_ratio.numel():
            return mean_or_nan(log_ratio)
        if self.aggregate == "forget":
            return functional.forget_truth_ratio(log_ratio, self.variant)
        return functional.utility_truth_ratio(log_ratio)


class ForgetQuality(_LogRatios):
    """Two-sample test between the truth ratios of this model and of the retain model, row by row the same.

    Args:
        reference: log R of the retain model by row index (of the same variant).
        variant: `geometric`, `arithmetic` or `open_unlearning`.
        nan: See `RowValues`; a row the reference has as NaN is left out as well.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(
        self,
        reference: Mapping[int, float],
        variant: str = "geometric",
        nan: Literal["skip", "raise"] = "skip",
        **kwargs: Any,
    ) -> None:
        super().__init__(variant=variant, nan=nan, **kwargs)
        if not reference:
            raise InputError("forget quality compares with a retain model: its truth ratios are missing")
        self.reference = {int(index): float(value) for index, value in reference.items()}

    def compute(self) -> dict[str, Tensor]:
        """`p`, `log10_p`, `d` and `n`, scalars.

        Raises:
            InputError: The rows are not those of the reference.
        """
        rows = self._scored()
        scored = dict(zip(rows["index"].long().tolist(), rows["log_ratio"].tolist(), strict=True))
        seen = set(scored) | set(self.unscored.tolist())
        if seen != set(self.reference):
            odd = sorted(seen ^ set(self.reference))
            raise InputError(
                f"forget quality needs the same rows of both models: {len(seen)} rows here, {len(self.reference)} in "
                f"the reference, {len(odd)} only in one of them (the first is row {odd[0]})"
            )
        result = functional.paired_forget_quality(scored, self.reference)
        values = result._asdict() if result else {"p": torch.nan, "log10_p": torch.nan, "d": torch.nan, "n": 0}
        return {name: torch.tensor(value, dtype=self._float, device=self.device) for name, value in values.items()}


class ModelUtility(RowValues):
    """Harmonic mean of {retain, real authors, world facts} x {probability, ROUGE-L recall, truth ratio}.

    Args:
        variant: Of the truth ratio: `geometric`, `arithmetic` or `open_unlearning`.
        nan: See `RowValues`.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    higher_is_better = True
    keys = ("group", "index")
    columns = ("probability", "rouge", "log_ratio")

    def __init__(self, variant: str = "geometric", nan: Literal["skip", "raise"] = "skip", **kwargs: Any) -> None:
        check_truth_ratio_variant(variant)
        super().__init__(nan=nan, **kwargs)
        self.variant = variant

    def update(
        self,
        name: str,
        index: Tensor,
        nll: Tensor,
        correct_nll: Tensor,
        wrong_nll: Tensor,
        rouge_l_recall: Tensor | Sequence[float],
    ) -> None:
        """Add rows of one set.

        Args:
            name: `retain`, `real_authors` or `world_facts`.
            index: (B,) row indices within the set.
            nll: (B,) mean token NLL of the answers in nats.
            correct_nll: (B,) the same of the paraphrased answers (of the answers themselves where there are none).
            wrong_nll: (B, K) the same of the wrong answers.
            rouge_l_recall: (B,) ROUGE-L recall of the generations.

        Raises:
            ValueError: The set is not part of model utility.
        """
        if name not in UTILITY_SETS:
            raise ValueError(f"{name!r} is not part of model utility: {', '.join(UTILITY_SETS)}")
        nll, correct_nll, wrong_nll = _double(nll), _double(correct_nll), _double(wrong_nll)
        plain = name == "retain"
        self._append(
            group=torch.full_like(nll, UTILITY_SETS.index(name)),
            index=index,
            probability=functional.answer_probability(nll)
            if plain
            else functional.normalized_probability(nll, wrong_nll, self.variant),
            rouge=rouge_l_recall,
            log_ratio=functional.log_truth_ratio(correct_nll, wrong_nll, self.variant),
        )

    def compute(self) -> Tensor:
        """Model utility between 0 and 1; NaN while one of the three sets has no rows that can be scored."""
        rows = self._scored()
        parts = []
        for group in range(len(UTILITY_SETS)):
            mine = rows["group"] == group
            if not bool(mine.any()):
                return mean_or_nan(rows["rouge"][mine])
            parts += [rows["probability"][mine].mean(), rows["rouge"][mine].mean()]
            parts += [functional.utility_truth_ratio(rows["log_ratio"][mine])]
        return functional.harmonic_mean(torch.stack(parts))


def _double(values: Tensor) -> Tensor:
    """float64 where the device has it: a model's NLLs may come in half precision."""
    values = torch.as_tensor(values)
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)
