"""MUSE's sets, metrics and numbers, and open-unlearning's logs of MUSE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import Metric

from dipo_lightning.benchmarks import Benchmark, Chart, ForeignFormat, Headline
from dipo_lightning.benchmarks.muse.measuring import MIN_KS, MUSERow
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import (
    ATTACK_METRICS,
    add_numbers,
    by_index,
    has_aggregate,
    is_summary,
    not_empty,
    refuse_summary,
    samples,
    stored_aggregates,
)
from dipo_lightning.evaluation.rows import EvaluationLog, Sets
from dipo_lightning.metrics import (
    ExactMemorization,
    ExtractionStrength,
    MembershipAUC,
    PairAUCs,
    PrivLeak,
    ReferenceAUC,
    RowMean,
    RowSet,
)
from dipo_lightning.metrics.membership import ATTACKS

OPEN_UNLEARNING_FORMAT = "open-unlearning/muse"
# By set, the metric that holds the generated texts.
_TEXTS = {
    "verbmem": "forget_verbmem_ROUGE",
    "knowmem_forget": "forget_knowmem_ROUGE",
    "knowmem_retain": "retain_knowmem_ROUGE",
}
_SCORES = ("exact_memorization", "extraction_strength")
NAMES = (*_TEXTS.values(), "privleak")


def is_open_unlearning_log(content: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is open-unlearning's log of MUSE, or the summary of one, which cannot be read."""
    return is_summary(content, NAMES) or any(has_aggregate(content.get(name)) for name in _TEXTS.values())


def read_open_unlearning_log(content: Mapping[str, Any], path: Path) -> EvaluationLog:
    """Read open-unlearning's log of MUSE; its rows are those of the variant `open_unlearning`.

    `aggregates` of the result holds the log's own numbers (`agg_value`) under the log's own names.

    Raises:
        InputError: The log is a summary without rows, or a value has the wrong type.
    """
    refuse_summary(content, NAMES, path)
    sets = {}
    for name, metric in _TEXTS.items():
        table = by_index(metric, content.get(metric), path)
        texts = {"rouge": "rougeL_f1", "prompt": "input", "answer": "ground_truth", "generation": "generation"}
        sets[name] = [
            {"index": index} | {key: found.get(source) for key, source in texts.items()}
            for index, found in table.items()
        ]
    for score in _SCORES:
        add_numbers(sets["verbmem"], score, by_index(score, content.get(score), path))
    for metric, attack in ATTACK_METRICS.items():
        for sample, table in samples(content, metric, path).items():
            add_numbers(sets.setdefault(f"privleak_{sample}", []), attack, table)
    return EvaluationLog(
        format=OPEN_UNLEARNING_FORMAT,
        settings={"variant": "open_unlearning"},
        sets=not_empty(sets, path),
        aggregates=stored_aggregates(content),
        path=path,
    )


PUBLISHED_RETRAIN_AUC = {"news": 0.4772, "books": 0.5393}
"""AUC of the published retain models by corpus: P(s_holdout < s_forget) with Min-40%."""

SCALES = {"muse": 100.0, "open_unlearning": 1.0}
"""Factor of the mean ROUGE-L F1 by variant: MUSE reports percent, open-unlearning values between 0 and 1."""

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


AUC_SCORES = {
    **{"nll": "loss", "lower": "loss over that in lower case", "zlib": "loss per compressed byte"},
    **{f"min_{share}": f"Min-{share}%" for share in MIN_KS},
}
"""Labels of the scores whose AUCs between all pairs of text sets muse_bench reports."""


class _ROUGE(RowMean):
    """Mean ROUGE-L F1, in percent as MUSE reports it or between 0 and 1 as open-unlearning does.

    Args:
        *sets: The sets to average over; `rouge` of a row is an F1 between 0 and 1.
        variant: ``muse`` reports it in percent, ``open_unlearning`` between 0 and 1.
        **kwargs: See `RowValues`.

    Raises:
        InputError: The variant is unknown.
    """

    field = "rouge"
    remembers = 1
    names_set = False

    def __init__(self, *sets: RowSet | str, variant: str = "muse", **kwargs: Any) -> None:
        super().__init__(*sets, **kwargs)
        if variant not in SCALES:
            raise InputError(f"The variant of MUSE is {variant!r}; it must be {' or '.join(SCALES)}.")
        self.scale = SCALES[variant]
        self.unit = "%" if variant == "muse" else ""

    def compute(self) -> Tensor:
        """Mean F1, in percent or between 0 and 1; NaN without rows."""
        return self.scale * super().compute()


class VerbMem(_ROUGE):
    """Verbatim memorisation: mean ROUGE-L F1 of greedy continuations against the true ones."""

    label = "VerbMem"
    meaning = "ROUGE-L F1 between the text to forget and the model's continuation of its beginning."


class KnowMem(_ROUGE):
    """Knowledge memorisation: mean ROUGE-L F1 of greedy answers against the true ones."""

    def __init__(self, of: RowSet | str, **kwargs: Any) -> None:
        super().__init__(of, **kwargs)
        [rows] = self.sets
        self.label = f"KnowMem ({rows.name.rpartition('_')[2]})"
        self.meaning = f"ROUGE-L F1 of the model's answers to {rows.about or 'questions about the text'}."


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
    row = MUSERow
    sets = (VERBMEM, KNOWMEM_FORGET, KNOWMEM_RETAIN, *PRIVLEAK.values())
    headline = Headline(
        forget="knowmem_forget",
        utility="knowmem_retain",
        beside=("verbmem", "privleak"),
        needs="measuring.generate: true and schedule.at_start: true",
    )
    shown = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak", "privleak_auc")
    brief: ClassVar = {
        "verbmem": "VerbMem",
        "knowmem_forget": "forget",
        "knowmem_retain": "retain",
        "privleak": "leak",
    }
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
        """Return MUSE's metrics: VerbMem, KnowMem of both sides (that of retain is the utility), PrivLeak and its AUCs.

        Further metrics are computed if the rows have the values: open-unlearning's memorisation and membership attacks,
        and muse_bench's AUCs between all pairs of text sets.
        """
        rouge = {"variant": settings.get("variant", "muse"), "lists_unscored": True}
        retain_rows = None if retain is None else retain.sets
        forget, holdout, kept = PRIVLEAK.values()
        found: dict[str, Metric] = {
            "verbmem": VerbMem(VERBMEM, **rouge),
            "knowmem_forget": KnowMem(KNOWMEM_FORGET, **rouge),
            "knowmem_retain": KnowMem(KNOWMEM_RETAIN, **rouge),
            "privleak": PrivLeak(
                *PRIVLEAK.values(),
                retain_rows=retain_rows,
                auc_retrain=settings.get("auc_retrain"),
                lists_unscored=True,
            ),
            "verbmem_exact_memorization": ExactMemorization(VERBMEM, optional=True),
            "verbmem_extraction_strength": ExtractionStrength(VERBMEM, optional=True),
        }
        for attack in ATTACKS:
            found[f"forget_{attack}_auc"] = MembershipAUC(forget, holdout, attack=attack, optional=True)
        found["forget_reference_auc"] = ReferenceAUC(forget, holdout, retain_rows=retain_rows, optional=True)
        for one, two, near in ((forget, holdout, 0.5), (forget, kept, None), (kept, holdout, None)):
            name = f"auc_{one.name}_{two.name}".replace("privleak_", "")
            found[name] = PairAUCs(one, two, AUC_SCORES, near, optional=True)
        return found

    def settings_of(self, log: EvaluationLog) -> dict[str, Any]:
        """Return a log's settings, with the AUC of the retain model that its PrivLeak was computed with."""
        return {**log.settings, "auc_retrain": log.aggregates.get("privleak_auc_retrain")}

    def hub_log(self, pretrained: str, options: Mapping[str, Any]) -> str:
        """Return the path of the retain model's log in open-unlearning's data set of logs, for News and Books."""
        name = str(options.get("data")).rpartition("-")[2]
        return f"muse_Llama-2-7b-hf_{name}_retrain/MUSE_EVAL.json" if name in ("News", "Books") else ""

    def describe(self, settings: Mapping[str, Any], sets: Sets) -> str:
        """Return the benchmark and its variant."""
        return f"MUSE ({settings['variant']})"
