"""Callbacks that write at the end of training: the exported model, and the page of the run's results."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from dipo_lightning.callbacks.run_record import CHECKPOINTS, read_record, write_record
from dipo_lightning.callbacks.stopping import is_logged
from dipo_lightning.data.rows import fingerprints
from dipo_lightning.errors import InputError, check_arguments, check_positive, options_of
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.evaluation.run_folder import is_trial, run_folder
from dipo_lightning.evaluation.schedule import settle_evaluations
from dipo_lightning.evaluation.tensorboard import CHARTS
from dipo_lightning.evaluation.trackers import trackers_of
from dipo_lightning.models.export import check_place, is_free, save_model
from dipo_lightning.report.card import CardFacts, model_card
from dipo_lightning.report.page import PAGE, write_page
from dipo_lightning.safety.paths import expanded


@dataclass
class Best:
    """Rule that selects the best moment of a run.

    Attributes:
        monitor: Logged number that decides, such as ``tofu/forget_quality``.
        mode: Whether ``max`` or ``min`` is best.
        keep: Number, logged at the same moments, that must keep ``share`` of its first value (the target's if the
            evaluation has ``at_start``); it also breaks ties. None sets no such condition, and the first of equal
            moments is taken.
        share: Share to keep.
    """

    monitor: str
    mode: Literal["max", "min"] = "max"
    keep: str | None = None
    share: float = 0.95


_OF_RUN = (".", CHECKPOINTS, "evaluations", CHARTS, PAGE, "config.yaml", "hparams.yaml", "console.log")
"""The run's folder, and what the run writes there itself."""


class ExportModel(Callback):
    """Export of the policy, and of the data module's tokenizer, when training ends or at the run's best moment.

    Args:
        folder: Folder to write; inside the run's log folder if relative and ``inside_run``. It must be absent or empty,
            and not where the run itself writes.
        adapters: For LoRA: ``merged`` into the weights, or ``separate`` (a peft folder).
        inside_run: Put a relative ``folder`` into the run's log folder, so that no run overwrites another's.
        best: Rule that selects the exported moment among those after the first step at which its number was logged;
            None exports the end.
    """

    def __init__(
        self,
        folder: str = "model",
        adapters: Literal["merged", "separate"] = "merged",
        inside_run: bool = True,
        best: Best | None = None,
    ) -> None:
        check_arguments(self)
        self.folder, self.adapters, self.inside_run = folder, adapters, inside_run
        self.best = None if best is None else options_of(f"{type(self).__name__}.best", Best, best)
        check_positive(self, {"best.share": None if self.best is None else self.best.share}, most=1)
        self.path: Path | None = None
        self._written = False
        self._exported: tuple[float, float] | None = None  # the rule's two numbers at the exported moment
        self._seen: tuple[float, float] | None = None  # those last looked at
        self._first: float | None = None  # the number to keep, when it was first logged
        self._logged: dict[str, float] = {}  # the rule's numbers at the step that was resumed from

    @property
    def state_key(self) -> str:
        """Key that allows several exports, into different folders, in one run."""
        return self._generate_state_key(folder=self.folder, inside_run=self.inside_run)

    def state_dict(self) -> dict[str, Any]:
        """Return the exported moment's numbers, for a resume."""
        return {"exported": self._exported, "seen": self._seen, "first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the numbers of the exported moment and of the saved step."""
        self._exported, self._seen, self._first = (state_dict.get(name) for name in ("exported", "seen", "first"))
        self._logged = state_dict.get("logged", {})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Also save the numbers of this step, which are compared only when the next one begins."""
        checkpoint["callbacks"][self.state_key] = self.state_dict() | {"logged": self._numbers(trainer)}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a folder that holds anything but this run's own export, before the model is loaded."""
        run = run_folder(trainer)
        self.path = (run if self.inside_run else Path()) / expanded(self.folder, "ExportModel.folder")
        self._written = False
        if stage == TrainerFn.FITTING:  # a checkpoint's state is restored after this
            self._exported, self._seen, self._first, self._logged = None, None, None, {}
        if stage != TrainerFn.FITTING or is_trial(trainer) or not trainer.is_global_zero:
            return
        if self._name(run).partition("/")[0] in _OF_RUN:
            raise InputError(
                f"ExportModel.folder is {self.folder}, where the run itself writes. Name another folder, such as model."
            )
        check_place(self.path, "ExportModel", replace=self._is_own(run))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Export the model as evaluated, if this was the best moment so far.

        An `InputError` if an evaluation was made, and has not logged the number that the rule expects of it.
        """
        if self.best is None or is_trial(trainer):
            return
        for option, name in self._names.items():
            evaluation = self._evaluation(trainer, name)
            if evaluation and any(map(evaluation.owns, trainer.callback_metrics)):
                is_logged(f"ExportModel.best.{option}", name, trainer)
        if self._is_best(trainer):
            self.export(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the final model, unless an earlier moment was better."""
        if is_trial(trainer):
            return
        settle_evaluations(trainer, pl_module)  # the card tells what the exported weights measured
        best = self._exported
        if self.best is None or self._is_best(trainer):
            self.export(trainer, pl_module)
        elif best is None:
            missing = [name for name in self._names.values() if name not in self._numbers(trainer)]
            reason = (
                f"logged {' or '.join(missing)} (logged: {', '.join(sorted(trainer.callback_metrics)) or 'nothing'})"
            )
            if not missing:
                kept = f" together with {self.best.share:g} of the first {self.best.keep}" if self.best.keep else ""
                reason = f"after the start logged {self.best.monitor}{kept}"
            rank_zero_warn(f"ExportModel.best: no step {reason}, so the final model is exported.")
            self.export(trainer, pl_module)
        else:
            rank_zero_info(f"The best model is exported: {self.best.monitor} is {best[0]:g}")
        if trainer.is_global_zero:
            print(f"The model is in {self.path}")

    @property
    def _names(self) -> dict[str, str]:
        """The logged numbers of the rule, by option."""
        assert self.best is not None
        names = {"monitor": self.best.monitor, "keep": self.best.keep}
        return {option: name for option, name in names.items() if name}

    def _numbers(self, trainer: pl.Trainer) -> dict[str, float]:
        """The last logged numbers of the rule, which a resumed run may have logged before it was interrupted."""
        names = self._names.values() if self.best is not None else ()
        logged = {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        return self._logged | logged

    @staticmethod
    def _evaluation(trainer: pl.Trainer, name: str) -> Evaluation | None:
        """The evaluation that logs a number; None if another part of the run does."""
        evaluations = (one for one in trainer.callbacks if isinstance(one, Evaluation))  # type: ignore[attr-defined]
        return next((one for one in evaluations if one.owns(name)), None)

    def _is_best(self, trainer: pl.Trainer) -> bool:
        """Compare the logged numbers with the exported moment's; True once if this moment is better."""
        assert self.best is not None
        for evaluation in (self._evaluation(trainer, name) for name in self._names.values()):
            if evaluation is not None and evaluation.last_step != trainer.global_step:
                return False  # its numbers are of an earlier moment
        logged = self._numbers(trainer)
        kept = logged.get(self.best.keep) if self.best.keep else None
        score = logged.get(self.best.monitor)
        if score is None or (self.best.keep and kept is None):
            return False
        moment = score, math.inf if kept is None else kept
        self._first = self._first if self._first is not None else moment[1]
        if moment == self._seen:  # nothing new was logged
            return False
        self._seen = moment
        enough = kept is None or moment[1] >= self.best.share * self._first
        if trainer.global_step == 0 or not enough or math.isnan(score):  # never the model before unlearning
            return False
        sign = 1 if self.best.mode == "max" else -1
        if self._exported is not None and (sign * score, moment[1]) <= (sign * self._exported[0], self._exported[1]):
            return False
        self._exported = moment
        return True

    def export(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder; every rank takes part in gathering the weights, rank 0 writes."""
        assert self.path is not None
        policy: nn.Module = pl_module.policy  # type: ignore[assignment]
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        write, run = trainer.is_global_zero, run_folder(trainer)
        card = self._card(trainer, pl_module, run) if write else None
        own = write and self._is_own(run)
        if write and is_free(self.path):
            self._note(run)
        save_model(policy, self.path, tokenizer, self.adapters == "merged", write, card, replace=own)
        self._written = True
        trainer.strategy.barrier()

    def _is_own(self, run: Path) -> bool:
        """Return whether the contents of the folder are an export of this run."""
        return self._written or self._name(run) in (read_record(run / CHECKPOINTS) or {}).get("exports", [])

    def _note(self, run: Path) -> None:
        """Record that this run wrote the export, so that it may write it again after a resume."""
        if (record := read_record(run / CHECKPOINTS)) is not None:
            write_record(run / CHECKPOINTS, exports=sorted({*record.get("exports", []), self._name(run)}))

    def _name(self, run: Path) -> str:
        """Name of the export in the run's record; relative to the run's folder, which may be moved."""
        assert self.path is not None
        path, inside = self.path.resolve(), run.resolve()
        return (path.relative_to(inside) if path.is_relative_to(inside) else path).as_posix()

    def _card(self, trainer: pl.Trainer, pl_module: pl.LightningModule, run: Path) -> str:
        """Write the model card from the module's settings, the data and the evaluations of this run."""
        assert self.path is not None
        adapters = self.adapters == "separate" and hasattr(pl_module.policy, "merge_and_unload")
        facts = CardFacts(
            name=self.path.resolve().name,
            base=str(getattr(pl_module, "pretrained", "a language model")),
            method=type(pl_module).__name__,
            settings=dict(pl_module.hparams),
            data=fingerprints(getattr(trainer, "datamodule", None)),
            run=run,
            step=trainer.global_step,
            adapters=adapters,
        )
        return model_card(facts)


class ResultsPage(Callback):
    """Page ``results.html``, written into the run's folder at the end of ``fit``, after the last evaluation.

    The page needs no network and no server; loggers that take files (W&B, trackio, MLflow) get it as an artifact.
    ``dipo-lightning report RUN_FOLDER`` writes it again.

    Args:
        rows: Maximum number of rows of each set whose answers are shown.
    """

    def __init__(self, rows: int = 100) -> None:
        self.rows = rows

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page on rank 0, and print its path."""
        settle_evaluations(trainer, pl_module)
        folder = run_folder(trainer)  # collective
        if not trainer.is_global_zero or is_trial(trainer):
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        if not any((folder / "evaluations").glob("*.json")):
            message = "No evaluation was made in this run, so there is no results page: add an evaluation callback."
            trainer.print(message)
            return
        page = write_page(folder, folder / PAGE, self.rows)
        for tracker in trackers_of(trainer):
            tracker.file(page)
        trainer.print(f"The results page is {page}")
