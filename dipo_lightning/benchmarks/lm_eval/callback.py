"""Evaluation of the policy on tasks of the lm-evaluation-harness during unlearning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch

from dipo_lightning.benchmarks.lm_eval.harness import Options, load_tasks, measure_tasks, settings_of
from dipo_lightning.benchmarks.lm_eval.metrics import LMEval
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS, Evaluation
from dipo_lightning.evaluation.rows import EvaluatedRows
from dipo_lightning.evaluation.schedule import Schedule


class LMEvalEvaluation(Evaluation):
    """Evaluation on tasks of EleutherAI's lm-evaluation-harness, such as MMLU and WMDP, with the policy in memory.

    Logs ``lm_eval/{task}_{metric}``, such as ``lm_eval/wmdp_bio_acc``. A group with an aggregate (``mmlu``) logs that
    number, any other group the numbers of its tasks. Needs ``pip install 'dipo-lightning[lm-eval]'``.

    The documents are divided over the processes; the results equal those of a single process. A sharded policy (FSDP2)
    is gathered for the evaluation, as for generation.

    Args:
        tasks: Names of tasks, groups or tags of the harness.
        num_fewshot: Number of examples before each question; None for each task's own. A task that sets 0 keeps it.
        limit: Maximum number of documents per task; None for all.
        batch_size: Documents per forward pass.
        chat_template: Write prompts with the tokenizer's chat template.
        include_path: A folder with your own tasks (YAML).
        schedule: Moments of the evaluation; by default before the first step and after the last.
        **options: Those of `Evaluation`.
    """

    benchmark = LMEval()

    def __init__(
        self,
        tasks: list[str],
        num_fewshot: int | None = None,
        limit: int | None = None,
        batch_size: int = 8,
        chat_template: bool = False,
        include_path: str | None = None,
        schedule: Schedule | None = None,
        **options: Any,
    ) -> None:
        super().__init__(schedule=schedule or Schedule(every_n_epochs=None), **options)
        self.tasks = list(tasks)
        self.given = Options(num_fewshot, limit, batch_size, chat_template, include_path)
        self.harness = self.given
        self.loaded: Mapping[str, Any] = {}
        self._settings: dict[str, Any] = {}

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the tasks and their data."""
        self.harness = replace(self.given, limit=FAST_DEV_ROWS) if self.is_trial(trainer) else self.given
        self.tokenizer_of(trainer)
        self.loaded = load_tasks(self.tasks, self.harness)
        self._settings = settings_of(self.tasks, self.loaded, self.harness)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain values."""
        return self._settings

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> EvaluatedRows:
        """Run every task on the policy."""
        policy: torch.nn.Module = pl_module.policy  # type: ignore[assignment]
        tokenizer = self.tokenizer_of(trainer)
        return EvaluatedRows(measure_tasks(policy, tokenizer, pl_module.device, self.loaded, self.harness))  # type: ignore[arg-type]
