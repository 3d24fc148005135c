"""From TOFU's rows to all its numbers: the one function for live evaluations and for logs of every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.columns import absent, column, generation_aggregates, mean_of_numbers, number, numbers
from dipo_lightning.evaluation.logs.log import EvaluationLog, Row, Rows, Sets, with_skipped
from dipo_lightning.evaluation.membership import membership_aggregates, privleak_aggregates
from dipo_lightning.metrics.functional.forget_quality import paired_forget_quality
from dipo_lightning.metrics.functional.model_utility import UTILITY_PARTS, UTILITY_SETS, model_utility
from dipo_lightning.metrics.functional.probability import answer_probability, normalized_probability
from dipo_lightning.metrics.functional.truth_ratio import (
    check_truth_ratio_variant,
    forget_truth_ratio,
    log_truth_ratio,
    utility_truth_ratio,
)

TOFU_SETS = ("forget", *UTILITY_SETS)
OPTION_SETS = ("real_authors", "world_facts")
"""Sets whose probability is normalised over the options."""


@dataclass(frozen=True)
class _SetScores:
    """The three numbers of each row of a set, (n,) float64; all NaN in the rows that are `unscored`, (n,) bool."""

    index: list[int]
    unscored: Tensor
    probability: Tensor
    rouge: Tensor
    log_ratio: Tensor


def aggregate(
    sets: Sets,
    reference: EvaluationLog | Sets | None = None,
    truth_ratio: str = "geometric",
    *,
    skipped: Sets | None = None,
) -> dict[str, Any]:
    """All aggregates of a TOFU evaluation.

    A row with a value that is no number (an answer without tokens) is left out of its set's aggregates and listed under
    `unscored_rows`. What cannot be computed is None, with the reason under `<name>_absent`.

    Args:
        sets: Rows by set name: forget, retain, real_authors, world_facts, and holdout for membership inference.
        reference: The retain model's log, or its sets, on the same forget rows; for forget quality and PrivLeak.
        truth_ratio: `geometric`, `arithmetic` or `open_unlearning`.
        skipped: Rows that were not scored, by set name; they must be the same rows as the reference's or its skipped.

    Returns:
        `model_utility`, its nine parts (`retain_probability`, ...), `forget_probability`, `forget_rouge`,
        `forget_truth_ratio`, `forget_quality` as {p, log10_p, d, n}; where the rows have them
        `forget_exact_memorization`, `forget_extraction_strength`, `forget_fluency` and `forget_perplexity` of what is
        said to the forget questions, `forget_<attack>_auc` (1: members are told from
        holdout rows, 0.5: not at all) and `privleak` in percent. Plain Python numbers.

    Raises:
        InputError: The variant is unknown, a row is twice in a set, or the reference has other rows.
    """
    check_truth_ratio_variant(truth_ratio)
    whole = with_skipped(sets, skipped)
    scores = {name: _score_rows(name, whole[name], truth_ratio) for name in TOFU_SETS if whole.get(name)}
    result: dict[str, Any] = {}
    for name in TOFU_SETS:
        result |= _set_aggregates(name, scores.get(name), truth_ratio)
    result |= _memorization(whole.get("forget", []))
    result |= {f"forget_{name}": value for name, value in generation_aggregates(whole.get("forget", [])).items()}
    result |= membership_aggregates(whole.get("forget", []), whole.get("holdout", []))
    reference_sets = _reference_sets(reference)
    result = _utility(result) | _forget_quality(whole.get("forget"), reference_sets, truth_ratio) | result
    if "forget_min_k_auc" in result:
        result |= privleak_aggregates(whole, reference_sets)
    unscored = {
        name: [index for index, bad in zip(table.index, table.unscored.tolist(), strict=True) if bad]
        for name, table in scores.items()
        if bool(table.unscored.any())
    }
    return result | ({"unscored_rows": unscored} if unscored else {})


def row_log_ratio(row: Row, truth_ratio: str) -> float:
    """Natural logarithm of the truth ratio R of a row.

    Args:
        row: With `correct_nll` and `wrong_nll`, or with a ready `truth_ratio` (open-unlearning's R) where a foreign log
            holds nothing else.
        truth_ratio: Which variant.

    Returns:
        log R; NaN where the row cannot be scored.

    Raises:
        InputError: Only a ready R is known, and another variant than open-unlearning's is asked for.
    """
    if "correct_nll" not in row and row.get("truth_ratio") is not None:
        if truth_ratio != "open_unlearning":
            raise InputError(
                f"row {row['index']} holds open-unlearning's truth ratio but not the losses it comes from: "
                f"{truth_ratio!r} cannot be computed from it; ask for truth_ratio='open_unlearning'"
            )
        ratio = float(row["truth_ratio"])
        return math.log(ratio) if ratio > 0 else -math.inf
    correct = torch.tensor(number(row.get("correct_nll")), dtype=torch.float64)
    return float(log_truth_ratio(correct, numbers(row, "wrong_nll"), truth_ratio))


def _score_rows(name: str, rows: Rows, truth_ratio: str) -> _SetScores:
    nll = column(rows, "nll")
    if name in OPTION_SETS:
        wrong = [numbers(row, "wrong_nll") for row in rows]
        shares = [float(normalized_probability(*losses, truth_ratio)) for losses in zip(nll, wrong, strict=True)]
        probability = torch.tensor(shares, dtype=torch.float64)
    else:
        probability = answer_probability(nll)
    log_ratio = torch.tensor([row_log_ratio(row, truth_ratio) for row in rows], dtype=torch.float64)
    columns = (probability, column(rows, "rouge_l_recall"), log_ratio)
    # A number that no row has (no text was generated) says nothing about single rows.
    given = [values for values in columns if not bool(values.isnan().all())]
    bad = torch.stack([values.isnan() for values in given]).any(dim=0) if given else torch.ones_like(nll).bool()
    return _SetScores([row["index"] for row in rows], bad, *(values.masked_fill(bad, math.nan) for values in columns))


def _set_aggregates(name: str, scores: _SetScores | None, truth_ratio: str) -> dict[str, float | None]:
    if scores is None:
        return {f"{name}_{part}": None for part in UTILITY_PARTS}
    log_ratio = scores.log_ratio[~scores.log_ratio.isnan()]
    whole = forget_truth_ratio(log_ratio, truth_ratio) if name == "forget" else utility_truth_ratio(log_ratio)
    return {
        f"{name}_probability": mean_of_numbers(scores.probability),
        f"{name}_rouge": mean_of_numbers(scores.rouge),
        f"{name}_truth_ratio": float(whole) if log_ratio.numel() else None,
    }


def _utility(parts: Mapping[str, Any]) -> dict[str, Any]:
    names = [f"{name}_{part}" for name in UTILITY_SETS for part in UTILITY_PARTS]
    missing = [name for name in names if parts[name] is None]
    if missing:
        return {"model_utility": None, "model_utility_absent": f"without scored rows: {', '.join(missing)}"}
    return {"model_utility": float(model_utility([parts[name] for name in names]))}


def _forget_quality(rows: Rows | None, reference: Sets | None, truth_ratio: str) -> dict[str, Any]:
    if reference is None:
        return absent("forget_quality", "no log of a retain model was given to compare with")
    if not rows:
        return absent("forget_quality", "the log has no forget rows")
    if not reference.get("forget"):
        return absent("forget_quality", "the retain model's log has no forget rows")
    mine = {row["index"]: row_log_ratio(row, truth_ratio) for row in rows}
    other = {row["index"]: row_log_ratio(row, truth_ratio) for row in reference["forget"]}
    if mine.keys() != other.keys():
        odd = sorted(mine.keys() ^ other.keys())
        raise InputError(
            f"forget quality needs the same forget rows of both models: {len(mine)} here, {len(other)} in the "
            f"reference, {len(odd)} only in one of them (the first is row {odd[0]})"
        )
    outcome = paired_forget_quality(mine, other)
    if outcome is None:
        return absent("forget_quality", "no forget row has a truth ratio under both models")
    return {"forget_quality": outcome._asdict()}


def _memorization(rows: Rows) -> dict[str, float]:
    result = {}
    for key in ("exact_memorization", "extraction_strength"):
        value = mean_of_numbers(column(rows, key))
        if value is not None:
            result[f"forget_{key}"] = value
    return result


def _reference_sets(reference: EvaluationLog | Sets | None) -> dict[str, list[Row]] | None:
    if reference is None:
        return None
    if isinstance(reference, EvaluationLog):
        return with_skipped(reference.sets, reference.skipped)
    return with_skipped(reference, None)
