"""MUSE measured while a model unlearns: memorised text, knowledge, privacy leakage, and every row behind them."""

from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from dipo_lightning.benchmarks.muse.data import HUB_NAMES, MUSEData, load_muse
from dipo_lightning.benchmarks.muse.datamodule import MUSEDataModule, is_published
from dipo_lightning.benchmarks.muse.metrics import aggregate
from dipo_lightning.benchmarks.muse.rows import MUSEOptions, MUSEPlan, evaluate_muse, plan_muse
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS, Document, Evaluation
from dipo_lightning.evaluation.logs import MUSE_FORMAT, EvaluationLog, check_comparable, read_log
from dipo_lightning.evaluation.rows import check_choice, check_measuring, check_numbers
from dipo_lightning.evaluation.tensorboard import answers_table
from dipo_lightning.metrics.functional.privleak import PUBLISHED_RETRAIN_AUC, privleak

SHOWN = {
    "verbmem": "VerbMem (forget)",
    "knowmem_forget": "KnowMem (forget)",
    "knowmem_retain": "KnowMem (retain, utility)",
    "privleak": "PrivLeak (0 is good)",
    "privleak_auc": "AUC forget / holdout",
}
WITHOUT = "none"


class MUSEEvaluation(Evaluation):
    """Evaluates the policy on MUSE, or on a corpus in its schema (Shi et al., 2024, arXiv 2407.06460).

    Logs ``muse/verbmem``, ``muse/knowmem_forget``, ``muse/knowmem_retain`` (MUSE's utility), ``muse/privleak`` and its
    AUCs. PrivLeak compares with a model that never saw the forget set. What stands for it is, in this order:
    ``retain_log``; ``baseline``; the published AUC, on the published corpora. Where there is nothing, that is an
    error: an unsaid 0.5 would be another metric.

    Args:
        data: ``muse-bench/MUSE-News`` or ``muse-bench/MUSE-Books`` on the hub, or a folder in their schema; None takes
            the MUSEDataModule's. Any other data module needs it.
        retain_log: This package's evaluation log of the retain model.
        baseline: Instead of it, the retain model's AUC: a number (0.5 says that its two samples look alike),
            ``news`` or ``books`` (the published ones), or ``none`` to measure no PrivLeak (for the retain model
            itself).
        variant: ``muse`` (ROUGE without stemmer, in percent) or ``open_unlearning`` (with stemmer, between 0 and 1,
            VerbMem against the whole true text, Min-K on the first 2048 tokens without the last).
        rows: Only the first so many rows of each set; None for all.
        verbmem_tokens: Most tokens of a continuation, and of the true text it is compared with.
        knowmem_tokens: Most tokens of an answer.
        space: Where the space after a question's ``Answer:`` stands: ``prompt`` as published, or ``answer``. A
            byte-level BPE has learnt to write the space with the answer's first word, and stumbles over one that
            stands alone.
        min_k_fraction: Share of the least likely tokens that Min-K averages.
        on_missing: What to do with a row without a value (a text too short for Min-K, a loss that isn't finite):
            ``skip`` leaves it out and lists it, ``raise`` ends the run.
        allow_overlap: Go on where retain2 or the holdout set has documents that are trained on, in this corpus or by
            the run; the published corpora are taken as they are.
        batch_tokens: Most tokens of a scoring forward, padding included.
        generation_rows: Most rows of a generation batch.
        samples: How many rows of a set are shown with their first and present texts in TensorBoard.
        every_n_epochs: Evaluate at the end of every n-th epoch; None for not at epochs.
        every_n_steps: Evaluate after every n-th optimiser step; None for not at steps.
        at_start: Evaluate before the first step.
        at_end: Evaluate after the last step, unless that has just been done.
    """

    name = "muse"
    shown = SHOWN
    may_be_absent: ClassVar = {"privleak": "PrivLeak"}

    def __init__(
        self,
        data: str | None = None,
        retain_log: str | None = None,
        baseline: float | Literal["news", "books", "none"] | None = None,
        variant: Literal["muse", "open_unlearning"] = "muse",
        rows: int | None = None,
        verbmem_tokens: int = 128,
        knowmem_tokens: int = 32,
        space: Literal["prompt", "answer"] = "prompt",
        min_k_fraction: float = 0.4,
        on_missing: Literal["skip", "raise"] = "skip",
        allow_overlap: bool = False,
        batch_tokens: int = 2048,
        generation_rows: int = 16,
        samples: int = 10,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
    ) -> None:
        super().__init__(every_n_epochs, every_n_steps, at_start, at_end)
        self.source, self.retain_log, self.baseline = data, retain_log, baseline
        self.rows, self.allow_overlap, self.samples = rows, allow_overlap, samples
        self.options = MUSEOptions(
            variant=variant,
            verbmem_tokens=verbmem_tokens,
            knowmem_tokens=knowmem_tokens,
            space=space,
            min_k_fraction=min_k_fraction,
            batch_tokens=batch_tokens,
            batch_rows=generation_rows,
            on_missing=on_missing,
        )
        self._check_options()
        self.plan: MUSEPlan | None = None
        self.corpus = ""
        self.reference: EvaluationLog | None = None
        self.auc_retrain: float | None = None
        self._tokenizer: Any = None

    def _check_options(self) -> None:
        options = self.options
        check_measuring(self, options)
        tokens = {"verbmem_tokens": options.verbmem_tokens, "knowmem_tokens": options.knowmem_tokens}
        check_numbers(self, {"rows": self.rows, **tokens})
        check_numbers(self, {"samples": self.samples}, least=0)
        check_choice(self, "variant", options.variant, ("muse", "open_unlearning"))
        check_choice(self, "space", options.space, ("prompt", "answer"))
        if self.baseline is not None and self.retain_log is not None:
            raise InputError("MUSEEvaluation has both retain_log and baseline; PrivLeak compares with one of them.")
        if isinstance(self.baseline, str):
            if self.baseline not in (*PUBLISHED_RETRAIN_AUC, WITHOUT):
                raise InputError(f"MUSEEvaluation.baseline is {self.baseline!r}; it is a number, news, books or none.")
        elif self.baseline is not None:
            privleak(0.0, self.baseline)  # refuses what cannot be divided by

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the corpus and the reference log, tokenise, and make sure that they belong together."""
        module = getattr(trainer, "datamodule", None)
        own = module if isinstance(module, MUSEDataModule) else None
        self._tokenizer = self.tokenizer_of(trainer)
        self.corpus = self.source or (own.data if own else "")
        if not self.corpus:
            raise InputError(
                f"MUSEEvaluation.data is not given, and there is no MUSEDataModule to take it from: give "
                f"{' or '.join(HUB_NAMES)}, or a folder in their schema."
            )
        self._choose_baseline()
        trains_on_it = own is not None and own.data == self.corpus
        allow_overlap = self.allow_overlap or (own is not None and own.allow_overlap)
        data = load_muse(
            self.corpus,
            own.forget if own and trains_on_it else "train/forget",
            first=FAST_DEV_ROWS if self.is_trial(trainer) else self.rows,
            allow_overlap=allow_overlap or is_published(self.corpus),
        )
        if trainer.state.fn == TrainerFn.FITTING and not (trains_on_it or allow_overlap):
            refuse_trained(data, module)
        self.plan = plan_muse(data, self._tokenizer, self.options)
        if self.reference is not None and not self.is_trial(trainer):
            self._check_reference(self.reference, self.plan)

    def _choose_baseline(self) -> None:
        """Decide what PrivLeak compares with, or refuse to guess."""
        self.reference, self.auc_retrain = None, None
        if self.retain_log is not None:
            self.reference = read_log(self.retain_log)
        elif isinstance(self.baseline, str) and self.baseline != WITHOUT:
            self.auc_retrain = PUBLISHED_RETRAIN_AUC[self.baseline]
        elif self.baseline is None and is_published(self.corpus):
            self.auc_retrain = PUBLISHED_RETRAIN_AUC["news" if self.corpus.endswith("News") else "books"]
        elif self.baseline is None:
            raise InputError(
                f"PrivLeak on {self.corpus} has nothing to compare with. Give MUSEEvaluation.retain_log, the log of "
                "a model trained without the forget set; or baseline: 0.5, if you mean that such a model tells "
                "nothing; or baseline: none to measure no PrivLeak (for that model itself)."
            )
        elif self.baseline != WITHOUT:
            self.auc_retrain = float(self.baseline)

    def _check_reference(self, reference: EvaluationLog, plan: MUSEPlan) -> None:
        """Refuse the log of another corpus or of other rows."""
        planned = EvaluationLog(MUSE_FORMAT, self.settings, plan.rows, plan.skipped)
        check_comparable(planned, reference)
        for name in ("privleak_forget", "privleak_holdout"):
            texts = {row["index"]: row["text"] for row in plan.rows[name]}
            for row in reference.sets.get(name, ()):
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
            "variant": self.options.variant,
            "rows": self.rows,
            "verbmem_tokens": self.options.verbmem_tokens,
            "knowmem_tokens": self.options.knowmem_tokens,
            "space": self.options.space,
            "min_k_fraction": self.options.min_k_fraction,
            "on_missing": self.options.on_missing,
            "retain_log": self.retain_log,
            "baseline": self.baseline,
        }

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Document:
        """Measure every row, then all that is computed from rows."""
        assert self.plan is not None
        policy: torch.nn.Module = pl_module.policy  # type: ignore[assignment]
        evaluated = evaluate_muse(
            policy,
            self.plan,
            self.options,
            self._tokenizer,
            device=pl_module.device,
            progress=lambda total, what: self.progress(trainer, total, what),
        )
        variant, reference = self.options.variant, self.reference
        if self.is_trial(trainer):
            reference = None  # measured on all rows, not on two
        aggregates = aggregate(
            evaluated.sets, reference, variant, auc_retrain=self.auc_retrain, skipped=evaluated.skipped
        )
        if aggregates["privleak"] is None and self.baseline == WITHOUT:
            aggregates["privleak_absent"] = "baseline is none"
        return self.document(MUSE_FORMAT, self.settings, evaluated, aggregates)

    def describe(self, document: Document) -> str:
        """Return the benchmark and the manner of its ROUGE."""
        return f"MUSE ({document['settings']['variant']})"

    def hyperparameter_metrics(self, document: Document) -> dict[str, float]:
        """The four that MUSE compares methods by, where they are."""
        scalars = self.scalars(document)
        names = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak")
        return {name: scalars[name] for name in names if name in scalars}

    def write_tensorboard(self, experiment: Any, document: Document, step: int) -> None:
        """Show what the model said first and says now, and how likely it finds the texts."""
        first = self.first or document
        for name in ("verbmem", "knowmem_forget", "knowmem_retain"):
            before, now = (
                [{"question": row.get("prompt"), **row} for row in found["sets"][name]] for found in (first, document)
            )
            experiment.add_text(f"muse/{name}_texts", answers_table(before[: self.samples], now), step)
        for name in ("privleak_forget", "privleak_holdout"):
            values = torch.tensor([row["min_k"] for row in document["sets"][name]])
            if values.numel():
                experiment.add_histogram(f"muse/{name}_min_k", values, step)


def refuse_trained(data: MUSEData, datamodule: Any) -> None:
    """Refuse a run of another data module that trains on what must not be trained on.

    Raises:
        InputError: It forgets or keeps documents of retain2 or of the holdout set, or fine-tunes on the latter.
    """
    unlearned = {f"data.{name}": getattr(datamodule, f"{name}_rows", None) or [] for name in ("forget", "retain")}
    data.refuse_trained(unlearned)
    data.refuse_trained({"data.train": getattr(datamodule, "train_rows", None) or []}, retain2=False)
