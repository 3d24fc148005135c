"""Membership inference over all rows: AUC of a score, and PrivLeak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from dipo_lightning.metrics import functional
from dipo_lightning.metrics.rows import Meaning, Row, Rows, RowSet, RowValues


class _TwoSamples(RowValues):
    """Scores of rows that were trained on and of rows that were not.

    Args:
        members: The set that was trained on.
        others: The set that was not.
        *more: Further sets whose rows must have the score, though it is not compared.
        **kwargs: See `RowValues`.
    """

    def __init__(self, members: RowSet | str, others: RowSet | str, *more: RowSet | str, **kwargs: Any) -> None:
        super().__init__(members, others, *more, **kwargs)

    def samples(self, column: str) -> tuple[Tensor, Tensor] | None:
        """Return the scores of both samples; None where one of them has none."""
        table = self.scored(column)
        members, others = (table[column][table["group"] == group] for group in (0, 1))
        return (members, others) if members.numel() and others.numel() else None


class MembershipAUC(_TwoSamples):
    """Exact AUC of a membership attack: 1 when all members score lower than the others, 0.5 when nothing is told.

    The loss attack takes the mean NLL per token, `nll`; only where one of the samples has none does it take `loss`.

    Args:
        members: The set that was trained on.
        others: The set that was not.
        attack: ``loss``, or the row's field that holds the score.
        **kwargs: See `RowValues`.
    """

    columns = ("score", "second_choice")

    def __init__(self, members: RowSet | str, others: RowSet | str, attack: str = "loss", **kwargs: Any) -> None:
        super().__init__(members, others, **kwargs)
        self.fields = ("nll", "loss") if attack == "loss" else (attack, attack)
        self.label = f"membership attack by {attack.replace('_', ' ')}, AUC"
        self.meaning = (
            "How well this score tells forgotten rows from rows the model never saw. 1: members are recognised; 0.5: "
            "not at all."
        )

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the score of a row, and the one that stands in for it."""
        return tuple(row.get(field) for field in self.fields)

    def compute(self) -> Tensor:
        """P(member < other), ties counted half; NaN while a sample is empty."""
        for column in self.columns:
            if found := self.samples(column):
                return functional.membership_auc(*found)
        return self._nothing()


class PrivLeak(_TwoSamples):
    """MUSE's PrivLeak in percent: 0 is what the retain model shows, very negative is under-unlearned.

    Args:
        members: The set that was trained on.
        others: The set that was not.
        *more: See `_TwoSamples`.
        retain_rows: The retain model's rows by set; None where there is no log of it.
        auc_retrain: The retain model's AUC, P(s_holdout < s_forget), instead of its rows;
            `functional.PUBLISHED_RETRAIN_AUC` has those of the published models. There is no default: an unsaid 0.5
            would be another metric.
        **kwargs: See `RowValues`.

    Raises:
        InputError: ``auc_retrain`` is not in (0, 1].
    """

    label = "privacy leak"
    flat = True
    needs_retain = ("", "auc_retrain")
    parts: ClassVar = {
        "": Meaning(
            "privacy leak",
            "Whether an attacker can tell the forgotten texts from texts never seen, compared with a retain model, in "
            "percent. 0 is best; far below: not forgotten; far above: forgotten so hard that it shows.",
            "%",
            near=0.0,
        ),
        "auc": Meaning("privacy leak, AUC", "How well the attack tells the two apart: 0.5 is not at all."),
        "auc_retrain": Meaning("the same of a retain model", "What the privacy leak is compared with."),
    }

    def __init__(
        self,
        members: RowSet | str,
        others: RowSet | str,
        *more: RowSet | str,
        retain_rows: Rows | None = None,
        auc_retrain: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(members, others, *more, **kwargs)
        if auc_retrain is not None:
            functional.privleak(
                auc_retrain, auc_retrain
            )  # refuses what cannot be divided by before anything is measured
        self.retain_rows, self.auc_retrain = retain_rows, auc_retrain

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the Min-K score of a row."""
        return (row.get("min_k"),)

    def auc(self) -> float | None:
        """Return P(s_holdout < s_forget), ties counted half; None while a sample is empty."""
        found = self.samples("number")
        return None if found is None else float(functional.privleak_auc(*found))

    def compute(self) -> Tensor | dict[str, Tensor]:
        """PrivLeak in percent, the AUC and the retain model's; NaN, with the reason, for what cannot be computed."""
        auc, both = self.auc(), f"{self.sets[0].name} and {self.sets[1].name}"
        if auc is None:
            return self._nothing("" if self.optional else f"the log has no Min-K scores in both {both}")
        other = self.auc_retrain
        if other is None and self.retain_rows is not None:
            retain = PrivLeak(*self.sets)
            retain.update(self.retain_rows)
            other = retain.auc()
            if other is None:
                reason = f"the retain model's log has no Min-K scores in both {both}"
                return {"": self._nothing(reason), "auc": self._scalar(auc)}
        if other is None:
            reason = "neither a retain model's log nor its AUC was given to compare with"
            return {"": self._nothing(reason), "auc": self._scalar(auc)}
        if other == 0:
            reason = "the retain model's AUC is 0: there is nothing to divide by"
            return {"": self._nothing(reason), "auc": self._scalar(auc)}
        found = {"": functional.privleak(auc, other), "auc": auc, "auc_retrain": other}
        return {name: self._scalar(value) for name, value in found.items()}
