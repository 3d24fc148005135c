"""Evaluation on a user's own rows, without a retain model: what is still remembered, and what is kept."""

from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch

from dipo_lightning.benchmarks.user_data.metrics import USER_DATA_FORMAT, user_data_aggregates
from dipo_lightning.benchmarks.user_data.rows import evenly, question_rows, row_style
from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS, Document, Evaluation
from dipo_lightning.evaluation.logs.log import END_OF_TURN
from dipo_lightning.evaluation.questions import RowOptions, evaluate_rows
from dipo_lightning.evaluation.rows import EvaluatedRows, check_measuring, check_numbers
from dipo_lightning.evaluation.tensorboard import answers_table, write_answers
from dipo_lightning.metrics.functional.truth_ratio import check_truth_ratio_variant

SHOWN = {
    "forget_probability": "forget probability",
    "forget_rouge": "forget ROUGE-L recall",
    "forget_exact_memorization": "forget exact memorisation",
    "forget_extraction_strength": "forget extraction strength",
    "forget_min_k": "forget Min-K (nats)",
    "forget_truth_ratio": "forget truth ratio",
    "retain_probability": "retain probability",
    "retain_rouge": "retain ROUGE-L recall",
    "utility": "utility (on retain rows)",
}


class MemorizationEvaluation(Evaluation):
    """Evaluates the policy on the data module's own forget and retain rows; needs no retain model.

    Logs under ``user_data/``: of both sets the probability of the answers, ROUGE-L recall of what the model says, exact
    memorisation, extraction strength and Min-K; ``user_data/utility`` on the retain rows; the truth ratio where rows
    have ``perturbed_answer`` (wrong answers; and ``paraphrased_answer``). A plain text is measured by its second half,
    given the first.

    Args:
        forget_rows: How many forget rows, spread evenly over all; None for all.
        retain_rows: How many retain rows, spread evenly over all; None for all.
        truth_ratio: Variant of the truth ratio: ``geometric``, ``arithmetic`` or ``open_unlearning``.
        generate: Whether to generate answers; without them there is no ROUGE, and it is faster.
        max_new_tokens: Most tokens of a generated answer.
        text_tokens: Tokens of a plain text that are looked at, both halves together.
        on_missing: What to do with a row without a value (an answer without tokens, a loss that isn't finite):
            ``skip`` leaves it out and lists it, ``raise`` ends the run.
        min_k_fraction: Share of the least likely tokens that Min-K and Min-K++ average.
        batch_tokens: Most tokens of a scoring forward, padding included.
        generation_rows: Most rows of a generation batch.
        samples: How many forget rows are shown with their first and present answers in TensorBoard.
        every_n_epochs: Evaluate at the end of every n-th epoch; None for not at epochs.
        every_n_steps: Evaluate after every n-th optimiser step; None for not at steps.
        at_start: Evaluate before the first step.
        at_end: Evaluate after the last step, unless that has just been done.
    """

    name = "user_data"
    shown = SHOWN
    may_be_absent: ClassVar = {"utility": "utility"}

    def __init__(
        self,
        forget_rows: int | None = None,
        retain_rows: int | None = 100,
        truth_ratio: Literal["geometric", "arithmetic", "open_unlearning"] = "geometric",
        generate: bool = True,
        max_new_tokens: int = 128,
        text_tokens: int = 256,
        on_missing: Literal["skip", "raise"] = "skip",
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
        self.limits: dict[str, int | None] = {"forget": forget_rows, "retain": retain_rows}
        self.truth_ratio, self.text_tokens, self.samples = truth_ratio, text_tokens, samples
        self.options = RowOptions(
            batch_tokens=batch_tokens,
            batch_rows=generation_rows,
            max_new_tokens=max_new_tokens,
            generate=generate,
            min_k_fraction=min_k_fraction,
            on_missing=on_missing,
        )
        self._check_options()
        self.sets: dict[str, list[dict[str, Any]]] = {}
        self.styles: dict[str, PromptStyle] = {}

    def _check_options(self) -> None:
        check_measuring(self, self.options)
        rows = {"forget_rows": self.limits["forget"], "retain_rows": self.limits["retain"]}
        check_numbers(self, {**rows, "max_new_tokens": self.options.max_new_tokens})
        check_numbers(self, {"samples": self.samples}, least=0)
        if self.text_tokens < 2:
            raise InputError(f"MemorizationEvaluation.text_tokens is {self.text_tokens}; two halves need at least 2.")
        check_truth_ratio_variant(self.truth_ratio)

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the rows and the prompt style of the data module."""
        datamodule = getattr(trainer, "datamodule", None)
        forget = getattr(datamodule, "forget_rows", None)
        if not forget:
            raise InputError(
                "MemorizationEvaluation measures the rows of the data module; use UnlearningDataModule, or one that "
                "has `forget_rows`, `retain_rows` and `style`."
            )
        style = self.style_of(trainer)
        halves = {"forget": forget, "retain": getattr(datamodule, "retain_rows", None) or []}
        self.sets, self.styles = {}, {}
        for name, rows in halves.items():
            if rows:
                chosen = evenly(rows, FAST_DEV_ROWS if self.is_trial(trainer) else self.limits[name])
                self.styles[name] = row_style(chosen, style)
                self.sets[name] = question_rows(chosen, style.tokenizer, self.text_tokens)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain values."""
        return {
            "forget_rows": self.limits["forget"],
            "retain_rows": self.limits["retain"],
            "truth_ratio": self.truth_ratio,
            "prompt_style": {name: style.fingerprint() for name, style in self.styles.items()},
            "generate": self.options.generate,
            "max_new_tokens": self.options.max_new_tokens,
            "text_tokens": self.text_tokens,
            "min_k_fraction": self.options.min_k_fraction,
            "end_of_turn": END_OF_TURN,
            "on_missing": self.options.on_missing,
        }

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Document:
        """Measure every row, then all that is computed from rows."""
        policy: torch.nn.Module = pl_module.policy  # type: ignore[assignment]
        evaluated = EvaluatedRows()
        for style, names in self._by_style():
            found = evaluate_rows(
                policy,
                style,
                {name: self.sets[name] for name in names},
                self.options,
                detailed=names,
                silent=(),
                device=pl_module.device,
                progress=lambda total, what: self.progress(trainer, total, what),
            )
            evaluated.sets |= found.sets
            evaluated.skipped |= found.skipped
        aggregates = user_data_aggregates(evaluated.sets, self.truth_ratio)
        return self.document(USER_DATA_FORMAT, self.settings, evaluated, aggregates)

    def _by_style(self) -> list[tuple[PromptStyle, list[str]]]:
        """The sets that are written alike, together: rows of like length meet in one batch."""
        groups: dict[str, tuple[PromptStyle, list[str]]] = {}
        for name, style in self.styles.items():
            groups.setdefault(style.name, (style, []))[1].append(name)
        return list(groups.values())

    def describe(self, document: Document) -> str:
        """Return whose rows they are, and how many."""
        return f"Own data ({', '.join(f'{len(rows)} {name}' for name, rows in document['sets'].items())} rows)"

    def hyperparameter_metrics(self, document: Document) -> dict[str, float]:
        """What is still said of the forget rows, and the utility, where they are."""
        scalars = self.scalars(document)
        return {name: scalars[name] for name in ("forget_probability", "forget_rouge", "utility") if name in scalars}

    def write_tensorboard(self, experiment: Any, document: Document, step: int) -> None:
        """Show what the model said first and says now."""
        if self.options.generate:
            first = (self.first or document)["sets"]["forget"]
            table = answers_table(first[: self.samples], document["sets"]["forget"])
            write_answers(experiment, table, step, tag="user_data/forget_answers")
