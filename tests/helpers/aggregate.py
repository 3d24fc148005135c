"""All numbers of rows that a test makes up, through the metrics that callbacks and logs use."""

from collections.abc import Mapping
from typing import Any

from dipo_lightning.benchmarks.muse import MUSE
from dipo_lightning.benchmarks.tofu import TOFU
from dipo_lightning.benchmarks.user_data import UserData
from dipo_lightning.evaluation.aggregates import log_aggregates
from dipo_lightning.evaluation.benchmark import Benchmark
from dipo_lightning.evaluation.callback import prepared
from dipo_lightning.evaluation.rows import EvaluationLog, with_skipped


def aggregate(
    benchmark: Benchmark, sets: Mapping[str, Any], retain: Any = None, skipped: Any = None, **settings: Any
) -> dict[str, Any]:
    """The aggregates of an evaluation with these rows; ``retain`` is the retain model's log, or its sets."""
    if retain is not None and not isinstance(retain, EvaluationLog):
        retain = EvaluationLog(benchmark.format, {}, retain)
    retain = None if retain is None else prepared(retain, benchmark, settings)
    return log_aggregates(benchmark, with_skipped(sets, skipped), settings, retain)


def tofu(sets: Any, retain: Any = None, truth_ratio: str = "geometric", skipped: Any = None) -> dict[str, Any]:
    return aggregate(TOFU(), sets, retain, skipped, truth_ratio=truth_ratio)


def muse(sets: Any, retain: Any = None, variant: str = "muse", **options: Any) -> dict[str, Any]:
    return aggregate(MUSE(), sets, retain, variant=variant, **options)


def user_data(sets: Any, truth_ratio: str = "geometric") -> dict[str, Any]:
    return aggregate(UserData(), sets, truth_ratio=truth_ratio)
