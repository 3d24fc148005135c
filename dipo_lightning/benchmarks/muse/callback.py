"""Evaluation of MUSE during unlearning: memorised text, knowledge, privacy leakage, and every row behind them."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from dipo_lightning.benchmarks.muse.data import HUB_NAMES, MUSEData, MUSEDataModule, is_published, load_muse
from dipo_lightning.benchmarks.muse.measuring import MUSEOptions, MUSEPlan, evaluate_muse, plan_muse
from dipo_lightning.benchmarks.muse.metrics import MUSE, PUBLISHED_RETRAIN_AUC
from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS, Evaluation
from dipo_lightning.evaluation.logs import check_comparable, read_log
from dipo_lightning.evaluation.rows import EvaluatedRows, EvaluationLog
from dipo_lightning.metrics.functional.membership import privleak

WITHOUT = "none"


class MUSEEvaluation(Evaluation):
    """Evaluation of the policy on MUSE, or on a corpus in its schema (Shi et al., 2024, arXiv 2407.06460).

    Logs ``muse/verbmem``, ``muse/knowmem_forget``, ``muse/knowmem_retain`` (MUSE's utility), ``muse/privleak`` and its
    AUCs, exact memorisation and extraction strength of the continuations, and the AUCs of further attacks.

    PrivLeak compares with the AUC of the retain model, which comes from ``retain_log``, or else from ``baseline``, or
    else, on the published corpora, from the paper. Without any of them the run is refused, since an assumed 0.5 would
    be another metric.

    Args:
        data: ``muse-bench/MUSE-News`` or ``muse-bench/MUSE-Books`` on the hub, or a folder in their schema; None for
            that of the MUSEDataModule. Required with any other data module.
        retain_log: Evaluation log of the retain model, this package's or open-unlearning's ``MUSE_EVAL.json``; with
            ``open-unlearning/eval`` it is read from that data set on the hub.
        baseline: AUC of the retain model, instead of its log: a number (0.5 if it cannot distinguish the two samples),
            ``news`` or ``books`` (the published ones), or ``none`` to measure no PrivLeak (for the retain model
            itself).
        variant: ``muse`` (ROUGE without stemmer, in percent) or ``open_unlearning`` (with stemmer, between 0 and 1,
            VerbMem against the whole true text, Min-K on the first 2048 tokens without the last).
        max_rows: Use only the first n rows of each set; None for all.
        verbmem_tokens: Maximum length in tokens of a continuation, and of the true text it is compared with.
        knowmem_tokens: Maximum length of an answer in tokens.
        space: Place of the space after a question's ``Answer:``: the end of the ``prompt``, as published, or the
            beginning of the ``answer``. Models with a byte-level BPE have learnt to write the space with the first word
            of the answer, and cope badly with a separate one.
        memorization: Score the true continuations that VerbMem compares with (the whole texts with
            ``open_unlearning``) token by token, for exact memorisation and extraction strength.
        lowercase: Also score the texts of PrivLeak in lower case, for muse_bench's ratio of the two losses.
        allow_overlap: Continue although this corpus or the run trains on documents of retain2 or of the holdout set;
            the published corpora are not checked.
        **options: Those of `Evaluation`: ``schedule``, ``measuring`` (16 rows per generation batch; a text too short
            for Min-K is a row without a value; not ``max_new_tokens``), ``metrics``, ``samples``.
    """

    benchmark = MUSE()

    def __init__(
        self,
        data: str | None = None,
        retain_log: str | None = None,
        baseline: float | Literal["news", "books", "none"] | None = None,
        variant: Literal["muse", "open_unlearning"] = "muse",
        max_rows: int | None = None,
        verbmem_tokens: int = 128,
        knowmem_tokens: int = 32,
        space: Literal["prompt", "answer"] = "prompt",
        memorization: bool = True,
        lowercase: bool = False,
        allow_overlap: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.data, self.retain_log, self.baseline = data, retain_log, baseline
        self.max_rows, self.allow_overlap = max_rows, allow_overlap
        self.texts = MUSEOptions(variant, verbmem_tokens, knowmem_tokens, space, memorization, lowercase)
        self._check_options()
        self.rows: MUSEData | None = None
        self.plan: MUSEPlan | None = None
        self.corpus = ""
        self.auc_retrain: float | None = None
        self._tokenizer: Any = None

    def _check_options(self) -> None:
        tokens = {"verbmem_tokens": self.texts.verbmem_tokens, "knowmem_tokens": self.texts.knowmem_tokens}
        check_numbers(self, {"max_rows": self.max_rows, **tokens})
        if self.measuring.max_new_tokens is not None:
            raise InputError("MUSEEvaluation has no measuring.max_new_tokens; set verbmem_tokens and knowmem_tokens.")
        if self.baseline is not None and self.retain_log is not None:
            raise InputError(
                "MUSEEvaluation has both retain_log and baseline; give one of them, with which PrivLeak compares."
            )
        if isinstance(self.baseline, str):
            if self.baseline not in (*PUBLISHED_RETRAIN_AUC, WITHOUT):
                raise InputError(
                    f"MUSEEvaluation.baseline is {self.baseline!r}; it must be a number, news, books or none."
                )
        elif self.baseline is not None:
            privleak(0.0, self.baseline)  # refuses an AUC that is not in (0, 1]

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read and tokenise the corpus, read the retain log, and check that they belong together."""
        module = getattr(trainer, "datamodule", None)
        own = module if isinstance(module, MUSEDataModule) else None
        self._tokenizer = self.tokenizer_of(trainer)
        self.corpus = self.data or (own.data if own else "")
        if not self.corpus:
            raise InputError(
                f"MUSEEvaluation.data is not given, and there is no MUSEDataModule to take it from; write "
                f"{' or '.join(HUB_NAMES)}, or a folder in their schema."
            )
        self._choose_baseline()
        trains_on_it = own is not None and own.data == self.corpus
        allow_overlap = self.allow_overlap or (own is not None and own.allow_overlap)
        data = own.muse if own and trains_on_it else None  # read once
        if data is None:
            part = own.forget if own and trains_on_it else "train/forget"
            data = load_muse(self.corpus, part, allow_overlap=allow_overlap or is_published(self.corpus))
        data = data.first(FAST_DEV_ROWS if self.is_trial(trainer) else self.max_rows)
        if trainer.state.fn == TrainerFn.FITTING and not (trains_on_it or allow_overlap):
            refuse_trained(data, module)
        self.rows = data
        self.plan = plan_muse(data, self._tokenizer, self.texts, self.measuring)
        if self.retain is not None and self.is_trial(trainer):
            self.retain, self.no_retain = None, f"fast_dev_run measures only {FAST_DEV_ROWS} rows of each set"
        elif self.retain is not None:
            self._check_retain(self.retain, self.plan)

    def _choose_baseline(self) -> None:
        """Determine the AUC that PrivLeak compares with, or refuse to guess it."""
        self.retain, self.auc_retrain = None, None
        self.no_retain = "baseline is none" if self.baseline == WITHOUT else ""
        if self.retain_log is not None:
            self.retain = read_log(self.retain_log, self.benchmark.hub_log("", {"data": self.corpus}), self.benchmark)
        elif isinstance(self.baseline, str) and self.baseline != WITHOUT:
            self.auc_retrain = PUBLISHED_RETRAIN_AUC[self.baseline]
        elif self.baseline is None and is_published(self.corpus):
            self.auc_retrain = PUBLISHED_RETRAIN_AUC["news" if self.corpus.endswith("News") else "books"]
        elif self.baseline is None:
            raise InputError(
                f"PrivLeak on {self.corpus} has nothing to compare with. Give MUSEEvaluation.retain_log, the log of "
                "the retain model; or baseline: 0.5, if you assume that a retain model cannot tell the two samples "
                "apart; or baseline: none, to measure no PrivLeak (for the retain model itself)."
            )
        elif self.baseline != WITHOUT:
            self.auc_retrain = float(self.baseline)

    def _check_retain(self, retain: EvaluationLog, plan: MUSEPlan) -> None:
        """Refuse a log of another corpus or of other rows."""
        planned = EvaluationLog(self.benchmark.format, self.settings, plan.rows, plan.skipped)
        check_comparable(planned, retain, self.benchmark)
        for name in ("privleak_forget", "privleak_holdout"):
            texts = {row["index"]: row["text"] for row in plan.rows[name]}
            for row in retain.sets.get(name, ()):
                if row.get("text", texts.get(row["index"])) != texts.get(row["index"]):
                    raise InputError(
                        f"{self.retain_log} is of another corpus: row {row['index']} of {name} begins "
                        f"{row['text'][:40]!r} there, and {texts.get(row['index'], '')[:40]!r} in {self.corpus}."
                    )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain values."""
        return {
            "data": self.corpus,
            "variant": self.texts.variant,
            "max_rows": self.max_rows,
            "verbmem_tokens": self.texts.verbmem_tokens,
            "knowmem_tokens": self.texts.knowmem_tokens,
            "space": self.texts.space,
            "memorization": self.texts.memorization,
            "lowercase": self.texts.lowercase,
            "generate": self.measuring.generate,
            "min_k_fraction": self.measuring.min_k_fraction,
            "on_missing": self.measuring.on_missing,
            "retain_log": self.retain_log,
            "baseline": self.baseline,
            "auc_retrain": self.auc_retrain,
        }

    def sources(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows to measure, as they were read."""
        return self.rows.sets if self.rows else {}

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> EvaluatedRows:
        """Measure every row."""
        assert self.plan is not None
        policy: torch.nn.Module = pl_module.policy  # type: ignore[assignment]
        return evaluate_muse(
            policy,
            self.plan,
            self.texts,
            self.measuring,
            self._tokenizer,
            device=pl_module.device,
            progress=lambda total, what: self.progress(trainer, total, what),
        )


def refuse_trained(data: MUSEData, datamodule: Any) -> None:
    """Raise an `InputError` where a data module trains on documents of the holdout set or, unlearning, of retain2.

    Fine-tuning on retain2 is allowed, since targets are trained on it.
    """
    unlearned = {f"data.{name}": getattr(datamodule, f"{name}_rows", None) or [] for name in ("forget", "retain")}
    data.refuse_trained(unlearned)
    data.refuse_trained({"data.train": getattr(datamodule, "train_rows", None) or []}, retain2=False)
