"""Membership inference and memorisation: token scores, AUCs of scores, and PrivLeak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from dipo_lightning.metrics import functional
from dipo_lightning.metrics.base import Meaning, Row, RowMean, Rows, RowSet, RowValues


class ExactMemorization(RowMean):
    """Mean share of answer tokens whose most probable prediction is right."""

    field = "exact_memorization"
    label = "exact memorisation"
    meaning = "Share of the answer's tokens that are the model's first choice, given those before."
    remembers = 1


class ExtractionStrength(RowMean):
    """Mean of 1 - k/n, k the shortest prefix after which the model continues an answer by itself."""

    field = "extraction_strength"
    label = "extraction strength"
    meaning = (
        "Share of the answer that the model completes without a fault once it is given the rest. 0: nothing can be "
        "drawn out; 1: all of it, from the question alone."
    )
    remembers = 1


class MinK(RowMean):
    """Mean Min-K score: minus the mean of the least likely tokens' log-probabilities."""

    field = "min_k"
    label = "Min-K"
    meaning = "Mean surprise at the least expected tokens of the answer. Low for a text that was learnt."
    unit = "nats"
    remembers = -1


class MinKPlusPlus(RowMean):
    """Mean Min-K++ score: Min-K of log-probabilities standardised over the vocabulary."""

    field = "min_k_plus_plus"
    label = "Min-K++"
    meaning = "Min-K, measured against how surprised the model usually is there. Low for a text that was learnt."
    remembers = -1


ATTACKS = {
    "loss": "loss",
    "zlib": "loss per byte of the compressed text",
    "min_k": "Min-K score (the least likely tokens)",
    "min_k_plus_plus": "Min-K++ score (the least likely tokens, beside what else was likely there)",
    "gradnorm": "norm of the gradient",
}
"""Scores of a row used by attacks, described in words."""

_SCORES = ATTACKS | {"reference": "loss, less the retain model's,"}


class _TwoSamples(RowValues):
    """Base of comparisons between the scores of rows that were trained on and of rows that were not.

    Args:
        members: The set that was trained on.
        others: The set that was not.
        *more: Further sets whose rows must have the score, although they are not compared.
        **kwargs: See `RowValues`.
    """

    def __init__(self, members: RowSet | str, others: RowSet | str, *more: RowSet | str, **kwargs: Any) -> None:
        super().__init__(members, others, *more, **kwargs)

    def samples(self, column: str) -> tuple[Tensor, Tensor] | None:
        """Return the scores of both samples; None if one of them has none."""
        table = self.scored(column)
        members, others = (table[column][table["group"] == group] for group in (0, 1))
        return (members, others) if members.numel() and others.numel() else None


class MembershipAUC(_TwoSamples):
    """Exact AUC of a membership attack: 1 if all members score lower than the others, 0.5 at chance.

    The direction is open-unlearning's. The loss attack uses the mean NLL per token, `nll`, or `loss` if one of the
    samples has no `nll`.

    Args:
        members: The set that was trained on.
        others: The set that was not.
        attack: ``loss``, or the row's field that holds the score.
        **kwargs: See `RowValues`.
    """

    columns = ("score", "second_choice")
    near = 0.5

    def __init__(self, members: RowSet | str, others: RowSet | str, attack: str = "loss", **kwargs: Any) -> None:
        super().__init__(members, others, **kwargs)
        self.fields = ("nll", "loss") if attack == "loss" else (attack, attack)
        self.label = f"membership attack by {attack.replace('_', ' ')}, AUC"
        score = _SCORES.get(attack, attack.replace("_", " "))
        self.meaning = (
            f"How well the {score} tells forgotten rows from rows the model never saw. 1: they are recognised; 0.5: "
            "not at all; far below: forgotten so hard that it shows."
        )

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return a row's score, and the one that replaces it if a sample has no scores."""
        return tuple(row.get(field) for field in self.fields)

    def compute(self) -> Tensor:
        """P(member < other), ties counted half; NaN while a sample is empty."""
        for column in self.columns:
            if found := self.samples(column):
                return functional.membership_auc(*found)
        return self._nothing()


class ReferenceAUC(MembershipAUC):
    """AUC of the reference attack: the score is a row's loss minus that of a model that never saw the members.

    Args:
        members: The set that was trained on.
        others: The set that was not.
        retain_rows: The retain model's rows by set, with their `nll`, or `loss` in foreign logs that have only that;
            None if there is no log of it. A row's field `reference`, found in foreign logs, takes precedence.
        **kwargs: See `RowValues`.
    """

    needs_retain = ("",)
    losses: ClassVar = ("nll", "loss")

    def __init__(
        self, members: RowSet | str, others: RowSet | str, retain_rows: Rows | None = None, **kwargs: Any
    ) -> None:
        super().__init__(members, others, attack="reference", **kwargs)
        self.retain = _by_index(retain_rows, *self.losses)

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the difference of the losses in nats per token, for both columns."""
        score, mine, other = row.get("reference"), _first(row, self.losses), self.retain.get((of.name, row["index"]))
        if score is None and mine is not None and other is not None:
            score = mine - other
        return score, score


class PairAUCs(RowValues):
    """AUC of several scores between two sets in MUSE's direction, P(second < first), as in muse_bench's `auc.json`.

    ``forget`` before ``holdout`` gives 0 if the forget set is memorised, and 0.5 if the two look alike.

    Args:
        first: One set.
        second: The other.
        scores: The rows' fields that hold a loss-like score, with their names for a reader.
        near: The best AUC, if there is one: 0.5 if neither set should be known.
        **kwargs: See `RowValues`.
    """

    def __init__(
        self,
        first: RowSet | str,
        second: RowSet | str,
        scores: Mapping[str, str],
        near: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.columns = tuple(scores)  # type: ignore[misc]  # the fields are options here
        super().__init__(first, second, **kwargs)
        one, two = (of.name.rpartition("_")[2] for of in self.sets)
        self.label = f"AUC of {one} and {two}"
        self.meaning = (
            f"Share of pairs in which the {two} text scores lower than the {one} text. 0.5: the two look alike."
        )
        self.parts = {  # type: ignore[misc]
            field: Meaning(f"{self.label} by {label}", self.meaning, near=near) for field, label in scores.items()
        }

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the scores of a row."""
        return tuple(row.get(field) for field in self.columns)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """AUC by score, ties counted half, of the scores that both sets have; NaN if there is none."""
        table, found = self.table(), {}
        for name in self.columns:
            first, second = (table[name][(table["group"] == group) & ~table[name].isnan()] for group in (0, 1))
            if first.numel() and second.numel():
                found[name] = functional.rank_auc(first, second)
        return found or self._nothing()


class PrivLeak(_TwoSamples):
    """MUSE's PrivLeak in percent: 0 for the retain model, far below 0 for an under-unlearned model.

    Args:
        members: The set that was trained on.
        others: The set that was not.
        *more: See `_TwoSamples`.
        retain_rows: The retain model's rows by set; None if there is no log of it.
        auc_retrain: The retain model's AUC, P(s_holdout < s_forget), instead of its rows. There is no default: an
            implicit 0.5 would be another metric.
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
        "auc": Meaning("privacy leak AUC", "How well the attack tells the two apart: 0.5 is not at all."),
        "auc_retrain": Meaning("the same of a retain model", "What the privacy leak is compared with."),
    }

    columns = ("number", "retain_number")

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
            functional.privleak(auc_retrain, auc_retrain)  # refuses an AUC that is not in (0, 1]
        self.auc_retrain, self.has_retain = auc_retrain, retain_rows is not None
        self.retain = _by_index(retain_rows, "min_k")

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the Min-K score of a row under both models."""
        return row.get("min_k"), self.retain.get((of.name, row["index"]))

    def auc(self, column: str = "number") -> float | None:
        """Return P(s_holdout < s_forget), ties counted half; None while a sample is empty."""
        found = self.samples(column)
        return None if found is None else float(functional.privleak_auc(*found))

    def compute(self) -> Tensor | dict[str, Tensor]:
        """PrivLeak in percent, the AUC and the retain model's AUC; NaN, with the reason, if not computable."""
        other, both = self.auc_retrain, f"{self.sets[0].name} and {self.sets[1].name}"
        if other is None and self.has_retain:
            other = self.auc("retain_number")
        auc = self.auc()
        if auc is None:
            return self._nothing("" if self.optional else f"the log has no Min-K scores in both {both}")
        if not other:
            reason = "neither a retain model's log nor its AUC was given to compare with"
            if other is not None:
                reason = "the retain model's AUC is 0: there is nothing to divide by"
            elif self.has_retain:
                reason = f"the retain model's log has no Min-K scores in both {both}"
            return {"": self._nothing(reason), "auc": self._scalar(auc)}
        found = {"": functional.privleak(auc, other), "auc": auc, "auc_retrain": other}
        return {name: self._scalar(value) for name, value in found.items()}


def _by_index(rows: Rows | None, *fields: str) -> dict[tuple[str, int], float | None]:
    """Return a number of another model's rows by set and index."""
    return {(name, row["index"]): _first(row, fields) for name, some in (rows or {}).items() for row in some}


def _first(row: Row, fields: Sequence[str]) -> float | None:
    """Return the first of the fields that holds a number."""
    return next((row[field] for field in fields if row.get(field) is not None), None)
