"""Aggregates of an evaluation log, computed again from its rows and compared with the stored ones."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from torchmetrics import Metric

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import check_resamples, log_aggregates, logged_metrics, user_metrics
from dipo_lightning.evaluation.benchmark import Benchmark, find_benchmark
from dipo_lightning.evaluation.callback import prepared
from dipo_lightning.evaluation.logs import check_comparable, read_log
from dipo_lightning.evaluation.rows import EvaluationLog, with_skipped

_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


def score(
    path: str | Path,
    retain_log: str | Path | None = None,
    truth_ratio: Literal["geometric", "arithmetic", "open_unlearning"] | None = None,
    auc_retrain: float | None = None,
    metrics: Mapping[str, Any] | None = None,
    bootstrap: int = 0,
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """Compute all aggregates of a log.

    Args:
        path: The log: this package's, open-unlearning's ``TOFU_EVAL.json`` or ``MUSE_EVAL.json``, or TOFU's
            ``eval_log_aggregated.json``.
        retain_log: Log of the retain model on the same rows, for forget quality and PrivLeak.
        truth_ratio: Variant of the truth ratio, for rows with wrong answers; default is the one stored in the log, or
            ``geometric``.
        auc_retrain: The retain model's AUC for PrivLeak (MUSE), if there is no log of it; default is the one stored in
            the log.
        metrics: Your own metrics by name, ``{my_metric: my_project.MyMetric}``. Those that the log names are computed
            too if their class can be imported; yours take precedence.
        bootstrap: Number of resamples of the rows for a 95 % interval of every number, under ``intervals``; 0 for none.
        bootstrap_seed: Seed of the resamples.

    Returns:
        The aggregates by name and, with `bootstrap`, the ends of their intervals under `intervals`. For logs of this
        package also `stored_aggregates_hold` (whether the aggregates in the file follow from its rows; None if it has
        none), `stored_aggregates_differ` (those that do not, with {stored, recomputed}), and
        `stored_aggregates_unchecked` (those that need the log of a second model, or a class that cannot be imported).

    Raises:
        InputError: A log or metric cannot be read, the logs cannot be compared, the variant is unknown, or an option
            would change nothing.
    """
    log = read_log(path)
    benchmark = find_benchmark(log.format, log.benchmark)
    assert benchmark is not None  # it has been read
    retain = None if retain_log is None else _retain(benchmark, log, retain_log)
    options = _options(benchmark, log, {"truth_ratio": truth_ratio, "auc_retrain": auc_retrain})
    if retain is not None and auc_retrain is not None:
        raise InputError("Both retain_log and auc_retrain are given; give one of them, with which PrivLeak compares.")
    own = benchmark.settings_of(log) | ({"auc_retrain": None} if retain is not None else {})
    known = benchmark.metrics(own)
    sets = benchmark.sets_of(own)
    chosen = user_metrics(metrics or {}, known, sets)
    named, missing = logged_metrics(log.settings, known, sets)
    further, missing = named | chosen, {name: why for name, why in missing.items() if name not in chosen}
    check_resamples("score", bootstrap, bootstrap_seed)
    result = _aggregate(log, benchmark, retain, own | options, further, (bootstrap, bootstrap_seed))
    if log.format != benchmark.format:
        return result
    if log.settings.get("auc_retrain") is not None:  # it was made with this number, not with a log
        retain, own = None, benchmark.settings_of(log)
    compared = _aggregate(log, benchmark, retain, own, further)
    unchecked = _unchecked(benchmark, log, compared, retain is not None) + list(missing)
    differing = stored_differences(log, compared, unchecked)
    return result | {
        "stored_aggregates_hold": not differing if log.aggregates else None,
        "stored_aggregates_differ": differing,
        "stored_aggregates_unchecked": [name for name in unchecked if log.aggregates.get(name) is not None],
        **{f"{name}_absent": reason for name, reason in missing.items()},
    }


def _options(benchmark: Benchmark, log: EvaluationLog, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options, without those that are None; an `InputError` for one that would change nothing."""
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in benchmark.score_options:
            instead = "give --retain_log instead" if name == "auc_retrain" else f"leave --{name} out"
            raise InputError(f"{name} is not an option of {benchmark.title}, the benchmark of {log.path}; {instead}.")
    rows = [row for some in log.sets.values() for row in some]
    if "truth_ratio" in options and not any(row.get("wrong_nll") or row.get("truth_ratio") is not None for row in rows):
        raise InputError(f"{log.path} has no row with wrong answers, so no truth ratio; leave --truth_ratio out.")
    return options


def _retain(benchmark: Benchmark, log: EvaluationLog, path: str | Path) -> EvaluationLog:
    metrics = benchmark.metrics(benchmark.settings_of(log)).values()
    if not any(getattr(metric, "needs_retain", ()) for metric in metrics):
        raise InputError(
            f"{log.path}: no number of {benchmark.title} is computed from the log of a retain model (fit and its page "
            "show one beside them); leave --retain_log out."
        )
    retain = read_log(path, benchmark=benchmark)
    check_comparable(log, retain, benchmark)
    return retain


def _unchecked(benchmark: Benchmark, log: EvaluationLog, compared: Mapping[str, Any], has_retain: bool) -> list[str]:
    """Name the aggregates that cannot be recomputed without a retain model."""
    names = []
    for name, metric in benchmark.metrics(benchmark.settings_of(log)).items():
        parts = [f"{name}_{part}" if part else name for part in getattr(metric, "needs_retain", ())]
        names += [
            part for part in parts
            if log.aggregates.get(part) is None or (not has_retain and compared.get(part) is None)
        ]  # fmt: skip
    return names


def _aggregate(
    log: EvaluationLog,
    benchmark: Benchmark,
    retain: EvaluationLog | None,
    settings: Mapping[str, Any],
    further: Mapping[str, Metric],
    bootstrap: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    sets = with_skipped(log.sets, log.skipped)
    retain = None if retain is None else prepared(retain, benchmark, settings)
    return log_aggregates(benchmark, sets, settings, retain, further, bootstrap)


def stored_differences(
    log: EvaluationLog, recomputed: dict[str, Any], unchecked: Collection[str] = ()
) -> dict[str, Any]:
    """Return the aggregates of a log that do not follow from its rows, ``{name: {stored, recomputed}}``.

    Names in ``unchecked`` are not compared, since the rows of this log alone do not determine them. A stored number
    that the rows do not give at all counts as different.
    """
    names = [name for name in log.aggregates if not name.endswith("_absent") and name not in unchecked]
    if recomputed.get("unscored_rows") and "unscored_rows" not in names:
        names.append("unscored_rows")  # rows without a value were silently ignored
    return {
        name: {"stored": log.aggregates.get(name), "recomputed": recomputed.get(name)}
        for name in names
        if not _same(log.aggregates.get(name), recomputed.get(name))
    }


def _same(stored: Any, recomputed: Any) -> bool:
    """Return whether two values are equal up to rounding, also inside nested dictionaries."""
    if isinstance(stored, dict) and isinstance(recomputed, dict):
        return stored.keys() == recomputed.keys() and all(_same(stored[key], recomputed[key]) for key in stored)
    numbers = [isinstance(value, int | float) for value in (stored, recomputed)]
    if all(numbers):
        return math.isclose(stored, recomputed, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return bool(stored == recomputed)


def print_score(log: str, **options: Any) -> None:
    """Print every aggregate of an evaluation log as JSON, without a model.

    Args:
        log: The log: this package's, open-unlearning's ``TOFU_EVAL.json`` or ``MUSE_EVAL.json``, or TOFU's
            ``eval_log_aggregated.json``.
        **options: Those of `score`.
    """
    print(json.dumps(score(log, **options), indent=2))
