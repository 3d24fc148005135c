"""Evaluation of user data during unlearning: memory of the forget rows and of the retain rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from dipo_lightning.benchmarks.user_data.data import evenly, question_rows, row_style
from dipo_lightning.benchmarks.user_data.metrics import UserData
from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS, Evaluation
from dipo_lightning.evaluation.questions import evaluate_rows
from dipo_lightning.evaluation.rows import EvaluatedRows

MAX_NEW_TOKENS = 128


class MemorizationEvaluation(Evaluation):
    """Evaluation of the policy on the data module's own forget and retain rows, with or without a retain model.

    Logs under ``user_data/``, for both sets: probability of the answers, ROUGE-L recall of the generated answers, exact
    memorisation, extraction strength and Min-K; and the truth ratio of rows with ``perturbed_answer`` (wrong answers).
    ``user_data/utility`` is computed on the retain rows. The question of a plain text is its first half, the answer the
    second.

    Without ``retain_log`` it is unknown how far a number of the forget rows should fall.

    Args:
        retain_log: Log of this evaluation of a model that never knew the forget rows, or the folder of the run that
            wrote it: its numbers are the floors of the forget rows' numbers.
        max_forget_rows: Maximum number of forget rows, spread evenly over all; None for all.
        max_retain_rows: Maximum number of retain rows, spread evenly over all; None for all.
        truth_ratio: Variant of the truth ratio: ``geometric``, ``arithmetic`` or ``open_unlearning``.
        text_tokens: Number of tokens used of a plain text, both halves together.
        **options: Those of `Evaluation`: ``schedule``, ``measuring`` (128 new tokens, 64 rows per generation batch),
            ``metrics``, ``samples``.
    """

    benchmark = UserData()

    def __init__(
        self,
        retain_log: str | None = None,
        max_forget_rows: int | None = 1000,
        max_retain_rows: int | None = 100,
        truth_ratio: Literal["geometric", "arithmetic", "open_unlearning"] = "geometric",
        text_tokens: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.retain_log = retain_log
        self.max_forget_rows, self.max_retain_rows = max_forget_rows, max_retain_rows
        self.truth_ratio, self.text_tokens = truth_ratio, text_tokens
        check_numbers(self, {"max_forget_rows": max_forget_rows, "max_retain_rows": max_retain_rows})
        check_numbers(self, {"text_tokens": text_tokens}, least=2)
        self.sets: dict[str, list[dict[str, Any]]] = {}
        self.styles: dict[str, PromptStyle] = {}

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the rows and the prompt style from the data module."""
        datamodule = getattr(trainer, "datamodule", None)
        forget = getattr(datamodule, "forget_rows", None)
        if not forget:
            raise InputError(
                "MemorizationEvaluation measures the rows of the data module; use UnlearningDataModule, or one that "
                "has `forget_rows`, `retain_rows` and `style`."
            )
        style = self.style_of(trainer)
        parts = {"forget": forget, "retain": getattr(datamodule, "retain_rows", None) or []}
        limits = {"forget": self.max_forget_rows, "retain": self.max_retain_rows}
        self.sets, self.styles = {}, {}
        for name, rows in parts.items():
            if rows:
                chosen = evenly(rows, FAST_DEV_ROWS if self.is_trial(trainer) else limits[name])
                if len(chosen) < len(rows):
                    rank_zero_info(
                        f"MemorizationEvaluation measures {len(chosen)} of {len(rows)} {name} rows, spread evenly over "
                        f"all: max_{name}_rows."
                    )
                self.styles[name] = row_style(chosen, style)
                self.sets[name] = question_rows(chosen, style.tokenizer, self.text_tokens)
        self.retain = None
        if self.retain_log is not None and not self.is_trial(trainer):
            self.retain = self.read_retain(self.retain_log)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a result, as plain values."""
        return {
            "max_forget_rows": self.max_forget_rows,
            "max_retain_rows": self.max_retain_rows,
            "truth_ratio": self.truth_ratio,
            "prompt_style": {name: style.fingerprint() for name, style in self.styles.items()},
            "generate": self.measuring.generate,
            "max_new_tokens": self.measuring.max_new_tokens or MAX_NEW_TOKENS,
            "text_tokens": self.text_tokens,
            "min_k_fraction": self.measuring.min_k_fraction,
            "on_missing": self.measuring.on_missing,
            "retain_log": None if self.retain_log is None else str(Path(self.retain_log)),
        }

    def sources(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows to measure, as questions with answers."""
        return self.sets

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> EvaluatedRows:
        """Measure every row."""
        policy: torch.nn.Module = pl_module.policy  # type: ignore[assignment]
        options = replace(self.measuring, max_new_tokens=self.measuring.max_new_tokens or MAX_NEW_TOKENS)
        evaluated = EvaluatedRows()
        for style, names in self._by_style():
            found = evaluate_rows(
                policy,
                style,
                {name: self.sets[name] for name in names},
                options,
                detailed=names,
                silent=(),
                device=pl_module.device,
                progress=lambda total, what: self.progress(trainer, total, what),
            )
            evaluated.sets |= found.sets
            evaluated.skipped |= found.skipped
        return evaluated

    def _by_style(self) -> list[tuple[PromptStyle, list[str]]]:
        """Return the sets grouped by prompt style, so that rows of similar length share batches."""
        groups: dict[str, tuple[PromptStyle, list[str]]] = {}
        for name, style in self.styles.items():
            groups.setdefault(style.name, (style, []))[1].append(name)
        return list(groups.values())
