"""Evaluation logs of this package and of others, read into the same rows."""

from dipo_lightning.evaluation.logs.comparing import check_comparable
from dipo_lightning.evaluation.logs.reading import read_log
from dipo_lightning.evaluation.rows import EvaluationLog

__all__ = ["EvaluationLog", "check_comparable", "read_log"]
