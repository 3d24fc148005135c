"""From MUSE's rows to its numbers: the one function for live evaluations and for logs."""

from __future__ import annotations

from typing import Any

from dipo_lightning.evaluation.columns import column, mean_of_numbers
from dipo_lightning.evaluation.logs.log import EvaluationLog, Sets, with_skipped
from dipo_lightning.evaluation.membership import privleak_aggregates
from dipo_lightning.metrics.functional.muse import muse_scale

ROUGE_SETS = ("verbmem", "knowmem_forget", "knowmem_retain")
PRIVLEAK_SETS = ("privleak_forget", "privleak_retain", "privleak_holdout")
MUSE_SETS = (*ROUGE_SETS, *PRIVLEAK_SETS)


def aggregate(
    sets: Sets,
    reference: EvaluationLog | Sets | None = None,
    variant: str = "muse",
    *,
    auc_retrain: float | None = None,
    skipped: Sets | None = None,
) -> dict[str, Any]:
    """All aggregates of a MUSE evaluation.

    Args:
        sets: Rows by set name: verbmem, knowmem_forget and knowmem_retain with `rouge` (ROUGE-L F1 between 0 and 1);
            privleak_forget, privleak_retain and privleak_holdout with `min_k`.
        reference: The retain model's log, or its sets.
        variant: `muse` gives ROUGE in percent, `open_unlearning` between 0 and 1 (rows scored with the stemmer).
        auc_retrain: The retain model's AUC where there is no log of it, as `functional.PUBLISHED_RETRAIN_AUC` has.
        skipped: Rows that were not scored, by set name.

    Returns:
        `verbmem`, `knowmem_forget`, `knowmem_retain` (MUSE's utility), `privleak` in percent with its AUCs; None where
        there are no rows, for `privleak` with the reason under `privleak_absent`; `unscored_rows` where there are any.

    Raises:
        InputError: The variant is unknown, `auc_retrain` is not in (0, 1], or a row stands twice in a set.
    """
    scale = muse_scale(variant)
    whole = with_skipped(sets, skipped)
    result: dict[str, Any] = {}
    unscored: dict[str, list[int]] = {}
    for name in MUSE_SETS:
        rows = whole.get(name, [])
        values = column(rows, "rouge" if name in ROUGE_SETS else "min_k")
        bad = [row["index"] for row, is_bad in zip(rows, values.isnan().tolist(), strict=True) if is_bad]
        if bad:
            unscored[name] = bad
        if name in ROUGE_SETS:
            mean = mean_of_numbers(values)
            result[name] = None if mean is None else scale * mean
    if isinstance(reference, EvaluationLog):
        reference = reference.sets
    result |= privleak_aggregates(whole, reference, auc_retrain, ("privleak_forget", "privleak_holdout"))
    return result | ({"unscored_rows": unscored} if unscored else {})
