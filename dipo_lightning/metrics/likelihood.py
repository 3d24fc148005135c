"""Metrics of answers: probability, ROUGE-L recall, truth ratio, model utility, forget quality (TOFU)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.metrics import functional
from dipo_lightning.metrics.base import Meaning, Row, RowMean, RowSet, RowValues, mean_or_nan
from dipo_lightning.metrics.functional.answers import check_truth_ratio_variant


class _Answers(RowValues):
    """Probability, ROUGE-L recall and log truth ratio of answers.

    Args:
        *sets: The sets whose rows count.
        among_options: Names of the sets whose probability is the share of the right answer among its options.
        complete: Exclude a row that lacks one of the three numbers from all three, as TOFU does. A number that no row
            of the set has (ROUGE, if no text was generated) excludes none.
        variant: Variant of the truth ratio; ``open_unlearning`` adds 1e-10 to every denominator.
        **kwargs: See `RowValues`.
    """

    columns = ("probability", "rouge", "log_ratio")

    def __init__(
        self,
        *sets: RowSet | str,
        among_options: Collection[str] = (),
        complete: bool = False,
        variant: str = "geometric",
        **kwargs: Any,
    ) -> None:
        check_truth_ratio_variant(variant)
        super().__init__(*sets, **kwargs)
        self.among_options, self.complete, self.variant = frozenset(among_options), complete, variant

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return the three numbers of a row, from `nll`, `wrong_nll`, `rouge_l_recall` and `log_ratio`."""
        return self._probability(row, of), row.get("rouge_l_recall"), row.get("log_ratio")

    def _probability(self, row: Row, of: RowSet) -> float | None:
        nll = row.get("nll")
        if nll is None:
            return None
        if of.name not in self.among_options:
            return functional.answer_probability(nll)
        wrong = [torch.nan if value is None else value for value in row.get("wrong_nll") or [None]]
        return functional.normalized_probability(nll, wrong, self.variant)

    def by_set(self) -> dict[str, dict[str, Tensor]]:
        """Return the numbers that count, without NaN, by set and column."""
        table, found = self.table(), {}
        self.unscored = {}
        for group, of in enumerate(self.sets):
            mine = table["group"] == group
            numbers = {name: table[name][mine] for name in self.columns}
            if self.complete and bool(mine.any()):
                given = [values.isnan() for values in numbers.values() if not bool(values.isnan().all())]
                bad = torch.stack(given).any(dim=0) if given else torch.ones_like(mine[mine])
                numbers = {name: values.masked_fill(bad, torch.nan) for name, values in numbers.items()}
                if bool(bad.any()):
                    self.unscored[of.name] = table["index"][mine][bad].long().tolist()
            found[of.name] = {name: values[~values.isnan()] for name, values in numbers.items()}
        return found

    def _truth_ratio(self, of: RowSet, log_ratio: Tensor) -> Tensor:
        if not log_ratio.numel():
            return mean_or_nan(log_ratio)
        if of.forget:
            return functional.forget_truth_ratio(log_ratio, self.variant)
        return functional.utility_truth_ratio(log_ratio)


class Probability(_Answers):
    """Mean probability of the answers, or of each right answer among its options."""

    label = "probability"
    meaning = (
        "How likely the model finds the true answer: the geometric mean over its tokens (for multiple choice, its "
        "share among the options). 1 is certain."
    )
    remembers = 1
    names_set = True

    def compute(self) -> Tensor:
        """Mean between 0 and 1; NaN without rows."""
        return mean_or_nan(torch.cat([part["probability"] for part in self.by_set().values()]))


class ROUGERecall(_Answers):
    """Mean ROUGE-L recall of the model's answers against the true ones."""

    label = "ROUGE-L recall"
    meaning = "Share of the true answer's words that the model's own answer holds, in their order. 1 is word for word."
    remembers = 1
    names_set = True

    def compute(self) -> Tensor:
        """Mean between 0 and 1; NaN without rows."""
        return mean_or_nan(torch.cat([part["rouge"] for part in self.by_set().values()]))


class TruthRatio(_Answers):
    """Truth ratio of a set: mean of min(R, 1/R) for a set to forget, of max(0, 1 - R) for others."""

    label = "truth ratio"
    meaning = (
        "Compares wrong answers with the right one in other words. For what must be forgotten, 1 means that both are "
        "equally likely, as if never learnt; for what must be kept, 1 means that the right one is far likelier."
    )
    higher_is_better = True
    names_set = True

    def compute(self) -> Tensor:
        """Truth ratio between 0 and 1; NaN without rows."""
        [of], [part] = self.sets, self.by_set().values()
        return self._truth_ratio(of, part["log_ratio"])


class TruthProbability(RowMean):
    """Mean of correct / (correct + wrong), the truth ratio of open-unlearning's `prob_mean`.

    Args:
        *sets: The sets whose rows count.
        variant: Variant of the truth ratio; see `functional.truth_probability`.
        **kwargs: See `RowValues`.
    """

    label = "truth ratio, prob_mean"
    meaning = (
        "Probability of the right answer in other words, over the sum of it and of the wrong ones' mean. 1: the truth "
        "is known; 0.5: right and wrong are equally likely, as if never learnt."
    )
    remembers = 1

    def __init__(self, *sets: RowSet | str, variant: str = "geometric", **kwargs: Any) -> None:
        check_truth_ratio_variant(variant)
        super().__init__(*sets, **kwargs)
        self.variant = variant

    def value(self, row: Row) -> float | None:
        """Return the right answer's share of the probability in a row, from `correct_nll` and `wrong_nll`."""
        correct, wrong = row.get("correct_nll"), row.get("wrong_nll")
        if correct is None or not wrong or None in wrong:
            return None
        return functional.truth_probability(correct, wrong, self.variant)


class ModelUtility(_Answers):
    """Harmonic mean of probability, ROUGE-L recall and truth ratio of all sets.

    With `complete` all of them are required; else those that were measured count.
    """

    label = "model utility"
    meaning = (
        "What the model can still do: harmonic mean of probability, ROUGE and truth ratio on what must be kept and on "
        "what it knows besides. One bad part pulls it down."
    )
    higher_is_better = True

    def compute(self) -> Tensor:
        """Utility between 0 and 1; NaN, with the reason, if a part is missing."""
        found: dict[str, Tensor] = {}
        for of, part in zip(self.sets, self.by_set().values(), strict=True):
            found |= {f"{of.name}_{name}": mean_or_nan(part[name]) for name in ("probability", "rouge")}
            found[f"{of.name}_truth_ratio"] = self._truth_ratio(of, part["log_ratio"])
        missing = [name for name, value in found.items() if value.isnan()]
        if missing and self.complete:
            return self._nothing(f"without scored rows: {', '.join(missing)}")
        if len(missing) == len(found):
            return self._nothing(f"there are no {' or '.join(of.name for of in self.sets)} rows to measure it on")
        return functional.harmonic_mean(torch.stack([value for value in found.values() if not value.isnan()]))


class ForgetQuality(RowValues):
    """Two-sample test between the truth ratios of this model and of the retain model, on the same rows.

    Args:
        of: The set that is to be forgotten.
        retain_rows: The retain model's rows of that set, with their `log_ratio`; None if there is no log of it.
        **kwargs: See `RowValues`.
    """

    columns = ("log_ratio", "retain_log_ratio")
    label = "forget quality"
    higher_is_better = True
    needs_retain = ("",)
    parts: ClassVar = {
        "p": Meaning(
            "forget quality (p)",
            "A statistical test against a model that never saw what must be forgotten: the chance of a difference as "
            "large as this one if both behaved alike. Below 0.05 the two can be told apart. 1 is the best possible.",
            higher_is_better=True,
        ),
        "log10_p": Meaning(
            "forget quality, log10 p",
            "The logarithm of p, the chance in a statistical test that a model which never saw what must be forgotten "
            "differs as much as this one. Below -1.3 the two can be told apart. 0 is the best possible.",
            "log10",
            higher_is_better=True,
        ),
        "d": Meaning(
            "forget quality, distance",
            "The largest gap between the two distributions that the test compares.",
            higher_is_better=False,
        ),
        "n": Meaning("rows in that test", "How many forget rows both models were measured on."),
    }

    def __init__(self, of: RowSet | str, retain_rows: Sequence[Row] | None, **kwargs: Any) -> None:
        super().__init__(of, **kwargs)
        self.retain: dict[int, float | None] | None = None
        if retain_rows is not None:
            self.retain = {row["index"]: row.get("log_ratio") for row in retain_rows}

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return log R of a row under both models."""
        return row.get("log_ratio"), (self.retain or {}).get(row["index"])

    def compute(self) -> Tensor | dict[str, Tensor]:
        """`p`, `log10_p`, `d` and `n`; NaN, with the reason, if nothing can be compared.

        Raises:
            InputError: The rows differ from those of the retain model.
        """
        indices = {int(index) for index in self.table()["index"].tolist()}
        if self.retain is None:
            return self._nothing("no log of a retain model was given to compare with")
        if not indices:
            return self._nothing("the log has no forget rows")
        if not self.retain:
            return self._nothing("the retain model's log has no forget rows")
        if not self.resampling and indices != self.retain.keys():
            odd = sorted(indices ^ self.retain.keys())
            raise InputError(
                f"forget quality needs the same forget rows of both models: {len(indices)} here, {len(self.retain)} in "
                f"the retain model's log, {len(odd)} only in one of them (the first is row {odd[0]})"
            )
        both = self.scored()
        if not both["index"].numel():
            return self._nothing("no forget row has a truth ratio under both models")
        outcome = functional.forget_quality(both["log_ratio"], both["retain_log_ratio"])
        return {
            name: torch.tensor(value) if name == "n" else self._scalar(value)
            for name, value in outcome._asdict().items()
        }
