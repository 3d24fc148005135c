"""MUSE's sets, numbers and logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torchmetrics import Metric

from dipo_lightning.benchmarks import Benchmark, Chart, ForeignFormat, Headline
from dipo_lightning.benchmarks.muse.open_unlearning_log import (
    OPEN_UNLEARNING_FORMAT,
    is_open_unlearning_log,
    read_open_unlearning_log,
)
from dipo_lightning.evaluation.rows import EvaluationLog, Sets
from dipo_lightning.metrics import KnowMem, PrivLeak, RowSet, VerbMem

VERBMEM = RowSet("verbmem", "Continuations of the text to forget", "the text to forget", True, ("rouge",))
KNOWMEM_FORGET = RowSet(
    "knowmem_forget", "Questions about the text to forget", "questions about the text to forget", True, ("rouge",)
)
KNOWMEM_RETAIN = RowSet(
    "knowmem_retain", "Questions about the text to keep", "questions about the text to keep", False, ("rouge",)
)
PRIVLEAK = {
    name: RowSet(f"privleak_{name}", title, title.lower(), forget, ("min_k",))
    for name, title, forget in (
        ("forget", "Texts to forget", True),
        ("holdout", "Texts the model never saw", None),
        ("retain", "Texts to keep", False),
    )
}


class MUSE(Benchmark):
    """MUSE: running text to forget, measured by memorised text, knowledge and privacy leakage."""

    name = "muse"
    title = "MUSE"
    format = "dipo-lightning/muse/1"
    foreign_formats = (
        ForeignFormat(
            OPEN_UNLEARNING_FORMAT,
            "open-unlearning's MUSE_EVAL.json",
            is_open_unlearning_log,
            read_open_unlearning_log,
        ),
    )
    sets = (VERBMEM, KNOWMEM_FORGET, KNOWMEM_RETAIN, *PRIVLEAK.values())
    headline = Headline(
        forget="knowmem_forget",
        utility="knowmem_retain",
        beside=("verbmem", "privleak"),
        needs="measuring.generate: true and schedule.at_start: true",
    )
    shown = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak", "privleak_auc")
    hyperparameter_metrics = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak")
    retain_values: ClassVar = {"privleak": 0.0}
    compared_sets = ("privleak_forget", "privleak_holdout")
    score_options = ("auc_retrain",)
    charts = (
        Chart(
            "memory of what must go and of what must stay",
            "Verbatim memory and knowledge of the text.",
            {
                "verbmem": "verbatim memory",
                "knowmem_forget": "knowledge to lose",
                "knowmem_retain": "knowledge to keep",
            },
        ),
    )
    answers: ClassVar = {name: f"{name}_texts" for name in ("verbmem", "knowmem_forget", "knowmem_retain")}
    histograms: ClassVar = {f"{name}_min_k": (name, "min_k") for name in ("privleak_forget", "privleak_holdout")}

    def metrics(self, settings: Mapping[str, Any], retain: EvaluationLog | None = None) -> dict[str, Metric]:
        """Return VerbMem, KnowMem of both sides (that of retain is MUSE's utility) and PrivLeak with its AUCs."""
        rouge = {"variant": settings.get("variant", "muse"), "lists_unscored": True}
        return {
            "verbmem": VerbMem(VERBMEM, **rouge),
            "knowmem_forget": KnowMem(KNOWMEM_FORGET, **rouge),
            "knowmem_retain": KnowMem(KNOWMEM_RETAIN, **rouge),
            "privleak": PrivLeak(
                *PRIVLEAK.values(),
                retain_rows=None if retain is None else retain.sets,
                auc_retrain=settings.get("auc_retrain"),
                lists_unscored=True,
            ),
        }

    def settings_of(self, log: EvaluationLog) -> dict[str, Any]:
        """Return a log's settings, with the AUC that its PrivLeak was compared with."""
        return {**log.settings, "auc_retrain": log.aggregates.get("privleak_auc_retrain")}

    def describe(self, settings: Mapping[str, Any], sets: Sets) -> str:
        """Return the benchmark and the manner of its ROUGE."""
        return f"MUSE ({settings['variant']})"
