"""TOFU measured while a model unlearns: forget quality, model utility, and every row behind them."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch

from dipo_lightning.benchmarks.tofu.data import HUB_NAME, TOFUData, load_tofu
from dipo_lightning.benchmarks.tofu.metrics import aggregate, row_log_ratio
from dipo_lightning.benchmarks.tofu.pictures import truth_ratios, write_truth_ratios
from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS, Document, Evaluation
from dipo_lightning.evaluation.logs import TOFU_FORMAT, EvaluationLog, check_comparable, read_log
from dipo_lightning.evaluation.logs.log import END_OF_TURN
from dipo_lightning.evaluation.questions import RowOptions, evaluate_rows
from dipo_lightning.evaluation.rows import EvaluatedRows, check_choice, check_measuring, check_numbers
from dipo_lightning.evaluation.tensorboard import answers_table, write_answers

SHOWN = {
    "forget_quality_p": "forget quality (p)",
    "forget_quality_log10_p": "log10 p",
    "model_utility": "model utility",
    "forget_truth_ratio": "forget truth ratio",
    "forget_probability": "forget probability",
    "forget_rouge": "forget ROUGE-L recall",
    "retain_rouge": "retain ROUGE-L recall",
}


class TOFUEvaluation(Evaluation):
    """Evaluates the policy on TOFU, or on data in its schema (Maini et al., 2024, arXiv 2401.06121).

    Logs ``tofu/forget_quality_p``, ``tofu/forget_quality_log10_p``, ``tofu/model_utility`` and its nine parts, and of
    the forget set memorisation, membership inference, and the fluency and perplexity of what the policy says to it.
    Without ``retain_log`` everything but forget quality is measured.

    Args:
        split: The forget split, ``forget01``, ``forget05``, ``forget10`` or another of ``data``; None takes the data
            module's.
        data: ``locuslab/TOFU`` on the hub, or a folder of JSON-lines files in its schema; None takes the data module's.
        retain_log: Evaluation log of the model that never saw the forget set: this package's, open-unlearning's
            ``TOFU_EVAL.json`` or TOFU's ``eval_log_aggregated.json``.
        truth_ratio: Variant of the truth ratio: ``geometric`` (the published tables), ``arithmetic`` (the paper's
            text) or ``open_unlearning``.
        rows: Only the first so many rows of each set; None for all. Forget quality needs the reference's rows.
        generate: Whether to generate answers; without them there is no ROUGE and no model utility, and it is faster.
        max_new_tokens: Most tokens of a generated answer.
        prompt_style: ``chat``, ``plain``, ``llama2`` or ``text``; None takes the data module's.
        on_missing: What to do with a row without a value (an answer without tokens, a loss that isn't finite):
            ``skip`` leaves it out and lists it, ``raise`` ends the run.
        membership: Whether to score the data's holdout rows, where it has any, for membership inference.
        min_k_fraction: Share of the least likely tokens that Min-K and Min-K++ average.
        batch_tokens: Most tokens of a scoring forward, padding included.
        generation_rows: Most rows of a generation batch.
        samples: How many forget rows are shown with their first and present answers in TensorBoard.
        every_n_epochs: Evaluate at the end of every n-th epoch; None for not at epochs.
        every_n_steps: Evaluate after every n-th optimiser step; None for not at steps.
        at_start: Evaluate before the first step.
        at_end: Evaluate after the last step, unless that has just been done.
    """

    name = "tofu"
    shown = SHOWN
    may_be_absent: ClassVar = {"forget_quality": "forget quality", "model_utility": "model utility"}

    def __init__(
        self,
        split: str | None = None,
        data: str | None = None,
        retain_log: str | None = None,
        truth_ratio: Literal["geometric", "arithmetic", "open_unlearning"] = "geometric",
        rows: int | None = None,
        generate: bool = True,
        max_new_tokens: int = 200,
        prompt_style: Literal["chat", "plain", "llama2", "text"] | None = None,
        on_missing: Literal["skip", "raise"] = "skip",
        membership: bool = True,
        min_k_fraction: float = 0.4,
        batch_tokens: int = 2048,
        generation_rows: int = 64,
        samples: int = 20,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
    ) -> None:
        super().__init__(every_n_epochs, every_n_steps, at_start, at_end)
        self.split, self.source, self.retain_log = split, data, retain_log
        self.truth_ratio, self.rows, self.prompt_style = truth_ratio, rows, prompt_style
        self.membership, self.samples = membership, samples
        self.options = RowOptions(
            batch_tokens=batch_tokens,
            batch_rows=generation_rows,
            max_new_tokens=max_new_tokens,
            generate=generate,
            min_k_fraction=min_k_fraction,
            on_missing=on_missing,
        )
        self._check_options()
        self.data: TOFUData | None = None
        self.style: PromptStyle | None = None
        self.reference: EvaluationLog | None = None
        self._no_reference: str | None = None

    def _check_options(self) -> None:
        check_measuring(self, self.options)
        check_numbers(self, {"rows": self.rows, "max_new_tokens": self.options.max_new_tokens})
        check_numbers(self, {"samples": self.samples}, least=0)
        check_choice(self, "truth_ratio", self.truth_ratio, ("geometric", "arithmetic", "open_unlearning"))

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the data and the reference log, and make sure that they belong together."""
        datamodule = getattr(trainer, "datamodule", None)
        split = self.split or getattr(datamodule, "split", None)
        if split is None:
            raise InputError("TOFUEvaluation.split is not given and the data module has none; write split: forget10.")
        source = self.source or getattr(datamodule, "data", None) or HUB_NAME
        self.data = load_tofu(source, split, first=FAST_DEV_ROWS if self.is_trial(trainer) else self.rows)
        self.style = self.style_of(trainer, self.prompt_style)
        self.reference, self._no_reference = None, None
        if self.retain_log is not None and self.is_trial(trainer):
            self._no_reference = f"fast_dev_run measures only {FAST_DEV_ROWS} rows of each set"
        elif self.retain_log is not None:
            self.reference = read_log(self.retain_log)
            self._check_reference(self.reference, self.data)

    def _check_reference(self, reference: EvaluationLog, data: TOFUData) -> None:
        planned = {
            name: [{"index": row["index"], "question": row["question"]} for row in rows]
            for name, rows in data.sets.items()
            if name == "forget" or (name == "holdout" and self.membership)
        }
        check_comparable(EvaluationLog(TOFU_FORMAT, self.settings, planned), reference)
        for row in reference.sets.get("forget", ()):
            row_log_ratio(row, self.truth_ratio)  # refuses a log from which this variant can't be computed

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain values."""
        assert self.data is not None
        assert self.style is not None
        return {
            "split": self.data.split,
            "data": self.source,
            "truth_ratio": self.truth_ratio,
            "prompt_style": self.style.fingerprint(),
            "rows": self.rows,
            "generate": self.options.generate,
            "max_new_tokens": self.options.max_new_tokens,
            "min_k_fraction": self.options.min_k_fraction,
            "end_of_turn": END_OF_TURN,
            "on_missing": self.options.on_missing,
            "membership": self.membership,
            "retain_log": None if self.retain_log is None else str(Path(self.retain_log)),
        }

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Document:
        """Measure every row, then all that is computed from rows."""
        assert self.data is not None
        assert self.style is not None
        policy: torch.nn.Module = pl_module.policy  # type: ignore[assignment]
        sets = {name: rows for name, rows in self.data.sets.items() if name != "holdout" or self.membership}
        evaluated = evaluate_rows(
            policy,
            self.style,
            sets,
            self.options,
            device=pl_module.device,
            progress=lambda total, what: self.progress(trainer, total, what),
        )
        return self._document(evaluated)

    def _document(self, evaluated: EvaluatedRows) -> Document:
        if self.reference is not None:
            add_reference_scores(evaluated, self.reference)
        aggregates = aggregate(
            evaluated.sets, reference=self.reference, truth_ratio=self.truth_ratio, skipped=evaluated.skipped
        )
        if self._no_reference:
            aggregates["forget_quality_absent"] = self._no_reference
        return self.document(TOFU_FORMAT, self.settings, evaluated, aggregates)

    def describe(self, document: Document) -> str:
        """Return the data set and its forget split."""
        return f"TOFU {document['settings']['split']}"

    def hyperparameter_metrics(self, document: Document) -> dict[str, float]:
        """Forget quality and model utility, where they are."""
        scalars = self.scalars(document)
        names = {"forget_quality": "forget_quality_p", "model_utility": "model_utility"}
        return {shown: scalars[name] for shown, name in names.items() if name in scalars}

    def write_tensorboard(self, experiment: Any, document: Document, step: int) -> None:
        """Show the truth ratios that the test compares, and what the model said first and says now."""
        forget = document["sets"]["forget"]
        reference = self.reference.sets.get("forget") if self.reference else None
        quality = document["aggregates"].get("forget_quality")
        values = truth_ratios(forget, self.truth_ratio)
        write_truth_ratios(experiment, values, truth_ratios(reference, self.truth_ratio), quality, step)
        if self.options.generate:
            first = (self.first or document)["sets"]["forget"]
            write_answers(experiment, answers_table(first[: self.samples], forget), step)


def add_reference_scores(evaluated: EvaluatedRows, reference: EvaluationLog) -> None:
    """Give the forget and holdout rows their loss less the reference's, a membership score, where its log has one."""
    for name in ("forget", "holdout"):
        others = {row["index"]: row.get("nll") for row in reference.sets.get(name, ())}
        for row in evaluated.sets.get(name, ()):
            if (other := others.get(row["index"])) is not None:
                row["reference"] = row["nll"] - other
