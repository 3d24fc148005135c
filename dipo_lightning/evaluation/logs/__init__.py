"""Evaluation logs of this package, of open-unlearning and of TOFU's authors, read into the same rows."""

from dipo_lightning.evaluation.logs.comparing import check_comparable
from dipo_lightning.evaluation.logs.log import (
    MUSE_FORMAT,
    OPEN_UNLEARNING_FORMAT,
    TOFU_AUTHORS_FORMAT,
    TOFU_FORMAT,
    EvaluationLog,
)
from dipo_lightning.evaluation.logs.reading import read_log

__all__ = [
    "MUSE_FORMAT",
    "OPEN_UNLEARNING_FORMAT",
    "TOFU_AUTHORS_FORMAT",
    "TOFU_FORMAT",
    "EvaluationLog",
    "check_comparable",
    "read_log",
]
