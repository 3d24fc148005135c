"""Score a log: read it, check it against the reference, aggregate, and see whether what it says of itself holds."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from dipo_lightning.benchmarks.muse import metrics as muse
from dipo_lightning.benchmarks.tofu import metrics as tofu
from dipo_lightning.benchmarks.user_data.metrics import user_data_aggregates
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs.comparing import check_comparable
from dipo_lightning.evaluation.logs.log import MUSE_FORMAT, MUSE_FORMATS, USER_DATA_FORMAT, EvaluationLog
from dipo_lightning.evaluation.logs.native import NATIVE_FORMATS
from dipo_lightning.evaluation.logs.reading import read_log

_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
# What follows from the rows of two models and not of one.
_NEEDS_REFERENCE = ("forget_quality", "privleak", "privleak_auc_retrain")


def score(
    path: str | Path,
    reference: str | Path | None = None,
    truth_ratio: str = "geometric",
    *,
    auc_retrain: float | None = None,
) -> dict[str, Any]:
    """All aggregates of a log.

    Args:
        path: A log of any known format.
        reference: A log of the retain model on the same rows, of any known format of the same benchmark.
        truth_ratio: `geometric`, `arithmetic` or `open_unlearning` (TOFU).
        auc_retrain: The retain model's AUC, where there is no log of it (MUSE); without either the one that the
            log stores.

    Returns:
        The aggregates under flat names. For this package's own logs also `stored_aggregates_hold`: whether the
        aggregates in the file follow from its rows (None where it has none), `stored_aggregates_differ`: which do not,
        with {stored, recomputed}, and `stored_aggregates_unchecked`: which need the log of a second model to say.

    Raises:
        InputError: A log cannot be read, the two cannot be compared, or the variant is unknown.
    """
    log = read_log(path)
    other = read_log(reference) if reference is not None else None
    if other is not None:
        check_comparable(log, other)
    if auc_retrain is not None and log.format not in MUSE_FORMATS:
        raise InputError(f"auc_retrain is for logs of MUSE, and {log.path} is none; give a log of the retain model.")
    # PrivLeak follows from the rows and the number it was compared with
    stored_auc = log.aggregates.get("privleak_auc_retrain") if log.format == MUSE_FORMAT and other is None else None
    result = _aggregate(log, other, truth_ratio, stored_auc if auc_retrain is None else auc_retrain)
    if log.format not in NATIVE_FORMATS:
        return result
    own_variant = log.settings.get("truth_ratio", "geometric")
    compared = _aggregate(log, other, own_variant, stored_auc)
    unchecked = [name for name in _NEEDS_REFERENCE if other is None or log.aggregates.get(name) is None]
    if stored_auc is not None:
        unchecked = [name for name in unchecked if not name.startswith("privleak")]
    differing = stored_differences(log, compared, unchecked)
    return result | {
        "stored_aggregates_hold": not differing if log.aggregates else None,
        "stored_aggregates_differ": differing,
        "stored_aggregates_unchecked": [name for name in unchecked if log.aggregates.get(name) is not None],
    }


def stored_differences(
    log: EvaluationLog, recomputed: dict[str, Any], unchecked: Collection[str] = ()
) -> dict[str, Any]:
    """Aggregates of a log that do not follow from its rows.

    Args:
        log: With its stored aggregates.
        recomputed: From its rows, with the log's own truth ratio.
        unchecked: Names that the rows of this log alone say nothing about.

    Returns:
        `{name: {"stored": ..., "recomputed": ...}}`; empty where all hold. A stored number that the rows don't give at
        all is one of them.
    """
    names = [name for name in log.aggregates if not name.endswith("_absent") and name not in unchecked]
    if recomputed.get("unscored_rows") and "unscored_rows" not in names:
        names.append("unscored_rows")  # rows without a value were passed over in silence
    return {
        name: {"stored": log.aggregates.get(name), "recomputed": recomputed.get(name)}
        for name in names
        if not _same(log.aggregates.get(name), recomputed.get(name))
    }


def _aggregate(
    log: EvaluationLog, reference: EvaluationLog | None, truth_ratio: str, auc_retrain: float | None
) -> dict[str, Any]:
    if log.format == USER_DATA_FORMAT:
        if reference is not None:
            raise InputError(f"{log.path} is of one's own data, which is measured without a second model's log.")
        return user_data_aggregates(log.sets, truth_ratio)
    if log.format in MUSE_FORMATS:
        variant = log.settings.get("variant", "muse")
        return muse.aggregate(log.sets, reference, variant, auc_retrain=auc_retrain, skipped=log.skipped)
    return tofu.aggregate(log.sets, reference, truth_ratio, skipped=log.skipped)


def _same(stored: Any, recomputed: Any) -> bool:
    """Equal up to rounding, through nested dicts and lists."""
    if isinstance(stored, dict) and isinstance(recomputed, dict):
        return stored.keys() == recomputed.keys() and all(_same(stored[key], recomputed[key]) for key in stored)
    numbers = [isinstance(value, int | float) for value in (stored, recomputed)]
    if all(numbers):
        return math.isclose(stored, recomputed, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return bool(stored == recomputed)


def print_score(
    log: str,
    reference: str | None = None,
    truth_ratio: Literal["geometric", "arithmetic", "open_unlearning"] = "geometric",
    auc_retrain: float | None = None,
) -> None:
    """Print every aggregate of an evaluation log as JSON, without a model.

    Args:
        log: The log: this package's, open-unlearning's ``TOFU_EVAL.json`` or ``MUSE_EVAL.json``, or TOFU's
            ``eval_log_aggregated.json``.
        reference: Log of the model trained without the forget set, for forget quality and PrivLeak.
        truth_ratio: Variant of the truth ratio.
        auc_retrain: The retain model's AUC, where there is no log of it (MUSE); else the one that the log stores.
    """
    print(json.dumps(score(log, reference, truth_ratio, auc_retrain=auc_retrain), indent=2))
