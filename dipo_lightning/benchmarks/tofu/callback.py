"""Evaluation of TOFU during unlearning: forget quality, model utility, and every row behind them."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from dipo_lightning.benchmarks.tofu.data import HUB_NAME, TOFUData, load_tofu
from dipo_lightning.benchmarks.tofu.metrics import TOFU
from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.prompts import PromptName
from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS, Evaluation
from dipo_lightning.evaluation.gradients import gradient_norms, without_end
from dipo_lightning.evaluation.questions import MAX_NEW_TOKENS, evaluate_rows
from dipo_lightning.evaluation.rows import EvaluatedRows


class TOFUEvaluation(Evaluation):
    """Evaluation of the policy on TOFU, or on data in its schema (Maini et al., 2024, arXiv 2401.06121).

    Logs ``tofu/forget_quality_p``, ``tofu/forget_quality_log10_p``, ``tofu/model_utility`` and its nine parts, and for
    the forget set also memorisation, membership inference, and fluency and perplexity of the policy's answers. Without
    ``retain_log`` everything except forget quality is measured.

    Args:
        split: The forget split, ``forget01``, ``forget05``, ``forget10`` or another of ``data``; None for that of the
            data module.
        data: ``locuslab/TOFU`` on the hub, or a folder of JSON-lines files in its schema; None for that of the data
            module.
        retain_log: Evaluation log of the retain model: this package's, open-unlearning's ``TOFU_EVAL.json`` or TOFU's
            ``eval_log_aggregated.json``. With ``open-unlearning/eval`` it is read from that data set on the hub, for
            the retain model of open-unlearning's target.
        truth_ratio: Variant of the truth ratio: ``geometric`` (the published tables), ``arithmetic`` (the paper's
            text) or ``open_unlearning``.
        max_rows: Use only the first n rows of each set; None for all. Forget quality needs the rows of the retain log.
        prompt_style: ``chat``, ``open_unlearning``, ``plain``, ``llama2`` or ``text``; None for that of the data
            module.
        membership: Score the data's holdout rows, if there are any, for membership inference.
        gradnorm: Also measure the gradient norm of every forget and holdout row, for the GradNorm attack; this needs a
            backward pass per row, and as much memory as a training step on one row without the optimiser.
        **options: Those of `Evaluation`: ``schedule``, ``measuring`` (200 new tokens, 64 rows per generation batch),
            ``metrics``, ``samples``.
    """

    benchmark = TOFU()

    def __init__(
        self,
        split: str | None = None,
        data: str | None = None,
        retain_log: str | None = None,
        truth_ratio: Literal["geometric", "arithmetic", "open_unlearning"] = "geometric",
        max_rows: int | None = None,
        prompt_style: PromptName | None = None,
        membership: bool = True,
        gradnorm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.split, self.data, self.retain_log = split, data, retain_log
        self.truth_ratio, self.max_rows, self.prompt_style = truth_ratio, max_rows, prompt_style
        self.membership, self.gradnorm = membership, gradnorm
        check_numbers(self, {"max_rows": max_rows})
        self.rows: TOFUData | None = None
        self.style: PromptStyle | None = None

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the data and the retain log, and check that they belong together."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        split = self.split or getattr(datamodule, "split", None)
        if split is None:
            raise InputError("TOFUEvaluation.split is not given and the data module has none; write split: forget10.")
        source = self.data or getattr(datamodule, "data", None) or HUB_NAME
        read = getattr(datamodule, "tofu", None)
        if not isinstance(read, TOFUData) or (source, split) != (datamodule.data, read.split):  # not the run's own
            read = load_tofu(source, split)
        self.rows = read.first(FAST_DEV_ROWS if self.is_trial(trainer) else self.max_rows)
        self.style = self.style_of(trainer, self.prompt_style)
        if self.gradnorm and "holdout" not in self.sources():
            missing = read.split.replace("forget", "holdout")
            raise InputError(
                f"TOFUEvaluation.gradnorm compares forget rows with holdout rows; {source} has no {missing}, or "
                "membership is false. Leave gradnorm out."
            )
        self.retain, self.no_retain = None, ""
        if self.retain_log is not None and self.is_trial(trainer):
            self.no_retain = f"fast_dev_run measures only {FAST_DEV_ROWS} rows of each set"
        elif self.retain_log is not None:
            usual = self.benchmark.hub_log(str(getattr(pl_module, "pretrained", "")), {"split": read.split})
            self.retain = self.read_retain(self.retain_log, usual)

    def sources(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows to measure, as they were read."""
        assert self.rows is not None
        return {name: rows for name, rows in self.rows.sets.items() if name != "holdout" or self.membership}

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain values."""
        assert self.rows is not None
        assert self.style is not None
        return {
            "split": self.rows.split,
            "data": self.data,
            "truth_ratio": self.truth_ratio,
            "prompt_style": self.style.fingerprint(),
            "max_rows": self.max_rows,
            "generate": self.measuring.generate,
            "max_new_tokens": self.measuring.max_new_tokens or MAX_NEW_TOKENS,
            "min_k_fraction": self.measuring.min_k_fraction,
            "on_missing": self.measuring.on_missing,
            "membership": self.membership,
            "gradnorm": self.gradnorm,
            "retain_log": None if self.retain_log is None else str(Path(self.retain_log)),
        }

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> EvaluatedRows:
        """Measure every row."""
        assert self.style is not None
        policy: torch.nn.Module = pl_module.policy  # type: ignore[assignment]
        evaluated = evaluate_rows(
            policy,
            self.style,
            self.sources(),
            self.measuring,
            device=pl_module.device,
            progress=lambda total, what: self.progress(trainer, total, what),
        )
        if self.gradnorm:
            self._add_gradient_norms(trainer, pl_module, evaluated)
        return evaluated

    def _add_gradient_norms(self, trainer: pl.Trainer, pl_module: pl.LightningModule, evaluated: EvaluatedRows) -> None:
        """Add the gradient norm to the forget and holdout rows."""
        assert self.style is not None
        rows = [row for name in ("forget", "holdout") for row in evaluated.sets[name]]
        examples = [without_end(self.style, *self.style.example(row["question"], row["answer"])) for row in rows]
        with self.progress(trainer, len(rows), "gradients") as done:
            norms = gradient_norms(pl_module.policy, examples, device=pl_module.device, progress=done)  # type: ignore[arg-type]
        for row, norm in zip(rows, norms, strict=True):
            row["gradnorm"] = norm
