"""Cheap attacks on the policy during unlearning: rewordings, answer prefixes, quantised weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from dipo_lightning.benchmarks.robustness.attack import Attack, Condition, Source, Subject
from dipo_lightning.benchmarks.robustness.data import at_most, subject_of
from dipo_lightning.benchmarks.robustness.metrics import Robustness, settings_pictures
from dipo_lightning.benchmarks.robustness.prefixes import Prefixes
from dipo_lightning.benchmarks.robustness.quantization import Quantization
from dipo_lightning.benchmarks.robustness.running import build_attacks, measure, named_attacks, planned, settings_of
from dipo_lightning.benchmarks.robustness.tables import PARTS
from dipo_lightning.benchmarks.robustness.wordings import Wordings
from dipo_lightning.errors import InputError, check_numbers, options_of
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS, Document, Evaluation
from dipo_lightning.evaluation.generation import BATCH_ROWS
from dipo_lightning.evaluation.rows import EvaluatedRows
from dipo_lightning.evaluation.schedule import Schedule


class RobustnessEvaluation(Evaluation):
    """Scheduled attacks on the policy, on any number of processes; the weights are restored bit for bit.

    Logs ``robustness/unlearned_{condition}_{metric}`` for every condition, and ``robustness/worst_rouge``, the result
    of the strongest attack. For relearning, sampling, and attacks on the retain model and the target, use
    ``dipo-lightning attack``.

    Args:
        wordings: Rewordings of the questions; see `Wordings`.
        prefixes: Answers whose beginning is given; see `Prefixes`.
        quantization: Quantised weights; see `Quantization`.
        attacks: Names of the attacks to make.
        further: Your own attacks by name: a class path, or ``class_path`` with ``init_args``.
        attack_metrics: Metrics of the answers, from which Q is computed too; see `metrics.METRICS`.
        max_forget_rows: Maximum number of forget rows, spread evenly over the forget set; None for all.
        schedule: Moments of the evaluation; by default before the first step and after the last.
        **options: Those of `Evaluation`: ``measuring`` (200 new tokens, 64 rows per generation batch), ``metrics``.
    """

    benchmark = Robustness()

    def __init__(
        self,
        wordings: Wordings | None = None,
        prefixes: Prefixes | None = None,
        quantization: Quantization | None = None,
        attacks: tuple[str, ...] = ("wordings", "prefixes", "quantization"),
        further: dict[str, Any] | None = None,
        attack_metrics: tuple[str, ...] = PARTS,
        max_forget_rows: int | None = 100,
        schedule: Schedule | None = None,
        **options: Any,
    ) -> None:
        super().__init__(schedule=Schedule(every_n_epochs=None) if schedule is None else schedule, **options)
        check_numbers(self, {"max_forget_rows": max_forget_rows})
        me = type(self).__name__
        kinds = {"wordings": Wordings, "prefixes": Prefixes, "quantization": Quantization}
        given = zip(kinds.items(), (wordings, prefixes, quantization), strict=True)
        own: list[Attack] = [
            kind() if one is None else options_of(f"{me}.{name}", kind, one) for (name, kind), one in given
        ]
        more = "The others take longer: `dipo-lightning attack` makes them."
        chosen = named_attacks(attacks, own, f"{me}.attacks", more)
        self.attacks = build_attacks(chosen, further)
        self.attack_metrics, self.max_forget_rows = attack_metrics, max_forget_rows
        self.subject: Subject | None = None
        self.plan: list[tuple[Attack, Condition]] = []

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the questions from the data module, and refuse attacks that cannot be made."""
        found = subject_of(getattr(trainer, "datamodule", None), self.style_of(trainer))
        limit = FAST_DEV_ROWS if self.is_trial(trainer) else self.max_forget_rows
        self.subject = replace(
            found,
            forget=at_most(found.forget, limit),
            metrics=self.attack_metrics,
            max_new_tokens=self.measuring.max_new_tokens or found.max_new_tokens,
            batch_tokens=self.measuring.batch_tokens,
            generation_rows=self.measuring.generation_rows or BATCH_ROWS,
        )
        self.plan = planned(self.attacks, self.subject)
        kept = ""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            kept = "sharded over processes (strategy: fsdp2)"
        elif getattr(getattr(pl_module, "lora", None), "base", "float32") != "float32":
            kept = "kept in 4 bits (model.lora.base: nf4)"
        if kept and any(condition.kind == "rounded" for _, condition in self.plan):
            raise InputError(
                f"RobustnessEvaluation cannot quantise weights that are {kept}: write attacks: [wordings, prefixes], "
                "and quantise the exported model with `dipo-lightning attack`."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain values."""
        assert self.subject is not None
        return settings_of(self.plan, self.subject, ["unlearned"], {})

    def sources(self) -> Mapping[str, Sequence[Source]]:
        """Return the forget rows as the source of every set."""
        assert self.subject is not None
        return {of.name: self.subject.forget for of in self.benchmark.sets_of(self.settings)}

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> EvaluatedRows:
        """Measure the policy under every condition."""
        assert self.subject is not None
        policy: torch.nn.Module = pl_module.policy  # type: ignore[assignment]
        subject = replace(
            self.subject,
            device=pl_module.device,
            progress=lambda total, what: self.progress(trainer, total, what),
        )
        evaluated = EvaluatedRows()
        for attack, condition in self.plan:
            found = measure(attack, policy, subject, condition)
            for name, rows in found.items():
                evaluated.add(f"unlearned_{name}", rows, self.measuring.on_missing)
        return evaluated

    def pictures(self, document: Document) -> dict[str, Any]:
        """Return a picture of each attack."""
        return super().pictures(document) | settings_pictures(document["settings"], document["aggregates"])
