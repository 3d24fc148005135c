"""Crash-safe checkpoint callback that stores everything an exact resume needs, and keeps a folder to one run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from dipo_lightning.callbacks.run_record import (
    CHECKPOINTS,
    FolderLock,
    StreamingIO,
    describe_run,
    read_record,
    refuse_changes,
    remove,
    replace,
    write_record,
)
from dipo_lightning.callbacks.signals import StopSignals, requeue
from dipo_lightning.data.rows import fingerprints
from dipo_lightning.errors import InputError, RunError, check_numbers
from dipo_lightning.evaluation.provenance import configuration
from dipo_lightning.evaluation.run_folder import is_named, is_trial, run_folder
from dipo_lightning.evaluation.schedule import Hook, Savepoint, Scheduled
from dipo_lightning.evaluation.tensorboard import event_files
from dipo_lightning.models.checkpoint import read_settled
from dipo_lightning.safety.paths import expanded
from dipo_lightning.safety.redaction import without_secrets

LAST, EVALUATING, FINISHED = "last.ckpt", "evaluating.ckpt", "finished"


class Checkpoint(Savepoint, CheckpointBase):
    """Crash-safe ``checkpoints/last.ckpt`` in the run's folder; ``fit --run FOLDER`` resumes from it exactly.

    The file is written under another name and then renamed, so that either it is complete or the previous one is still
    there. A step that is evaluated is saved before (``evaluating.ckpt``) and after its evaluation. On SIGTERM, and on
    the signal by which SLURM announces preemption (SIGUSR1, ``sbatch --signal=SIGUSR1@90``), the run saves after the
    current step, or abandons the current evaluation, and ends. After preemption SLURM queues a run with ``--run``
    again, except with ``SLURMEnvironment(auto_requeue=False)``.

    The folder also has the run's record, so that a resume with other options or data is refused; a second process is
    refused too.

    Args:
        every_n_epochs: Save at the end of every n-th epoch; None for no epoch. The end of training is always saved.
        every_n_steps: Save after every n-th optimiser step; None for no step.
        folder: Folder of the checkpoints; None is ``checkpoints`` in the run's folder.
    """

    def __init__(
        self, every_n_epochs: int | None = 1, every_n_steps: int | None = None, folder: str | None = None
    ) -> None:
        check_numbers(self, {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps})
        self.every_n_epochs, self.every_n_steps, self.folder = every_n_epochs, every_n_steps, folder
        self.path = Path(LAST)
        self.signals = StopSignals()
        self._lock = FolderLock()
        self._saved_step: int | None = None
        self._evaluating_step: int | None = None
        self._state: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}
        self._complete = False  # whether the checkpoint resumed from is of the end of training
        self._out_of_time = False  # whether a timer, and no rule, ends the training
        self._record: dict[str, Any] = {}
        self._earlier_events: list[Path] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lock the run's folder, or refuse it, before the model is loaded; collective.

        Raises:
            InputError: Another process trains there, or the folder's run has other options or data.
        """
        own = None if self.folder is None else expanded(self.folder, "Checkpoint.folder")
        folder = run_folder(trainer) / CHECKPOINTS if own is None else own
        self.path = trainer.strategy.broadcast(folder) / LAST
        self._saved_step = self._evaluating_step = None
        self._loaded, self._record, self._earlier_events = {}, {}, []
        self._complete = self._out_of_time = False
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = StreamingIO()
        if stage != TrainerFn.FITTING or is_trial(trainer):
            return
        problem: InputError | RunError | None = None
        if trainer.is_global_zero:
            try:
                self._take_folder(trainer, pl_module)
            except (InputError, RunError) as error:
                problem = error
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            self._lock.release()
            raise problem

    def _take_folder(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lock the folder, and compare this run with its record, or with the record beside the given checkpoint."""
        folder = self.path.parent
        self._lock.hold(folder)
        config = without_secrets(configuration(trainer, pl_module))
        self._record = describe_run(config, fingerprints(getattr(trainer, "datamodule", None)))
        if is_named(trainer):
            begun = open_event_files(trainer)
            self._earlier_events = [path for path in event_files(folder.parent) if path not in begun]
            # A run that was refused at its start has neither a checkpoint nor an evaluation, and may be replaced.
            if newest(folder) is not None or any((folder.parent / "evaluations").glob("*")):
                self._compare(folder)
        elif config.get("ckpt_path"):
            self._compare(Path(config["ckpt_path"]).parent)
        if read_record(folder) is None:
            write_record(folder, **self._record)

    def _compare(self, folder: Path) -> None:
        if (record := read_record(folder)) is not None:
            refuse_changes(record, self._record, folder.parent)

    def _begin(self, trainer: pl.Trainer) -> None:
        """Bring the folder to the state of the checkpoint, once nothing refuses the run any more."""
        self._refuse_to_replace(trainer)
        events, self._earlier_events = self._earlier_events, []
        if trainer.is_global_zero and self._record:
            drop_later_events(events, self._loaded.get("events", {}))
            self.path.with_name(FINISHED).unlink(missing_ok=True)
            write_record(self.path.parent, **self._record)
        self._record = {}

    def _refuse_to_replace(self, trainer: pl.Trainer) -> None:
        """Refuse to begin a run in a given folder that has the checkpoint of another run; collective.

        This cannot be checked earlier: the Trainer knows which checkpoint it resumes from only once that is restored.
        """
        if self.folder is None or self._saved_step is not None or trainer.global_step or is_trial(trainer):
            return
        own = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve().parent == self.path.parent.resolve()
        saved = None if own else trainer.strategy.broadcast(newest(self.path.parent))
        if saved is not None:
            raise InputError(
                f"{self.path.parent} has the checkpoint of an earlier run, which this one would replace. Give "
                f"`ckpt_path: {saved}` to resume that run, else another folder."
            )

    @property
    def best_model_path(self) -> str:
        """Path of the last checkpoint, the meaning of ``ckpt_path="best"`` here; empty without one.

        It is the same in Lightning's ModelCheckpoint when that monitors no metric.
        """
        saved = newest(self.path.parent)
        return "" if saved is None else str(saved)

    @property
    def last_good(self) -> Path | None:
        """Checkpoint that a run can be resumed from, if there is one."""
        return self.path if self.path.exists() else None

    # Moments of writing.

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse optimisers of another class, and a resume without any time left to train in; collective."""
        self._check_optimizers(trainer)
        self._check_time(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish the interrupted run's step: its pending evaluations, and numbers that it had not logged yet."""
        self._check_time(trainer)  # under FSDP2 the checkpoint is read only after `on_fit_start`
        self._begin(trainer)
        self.signals.listen(trainer)
        if hook := self._loaded.get("hook"):
            replay(trainer, pl_module, hook)
        if pending := self._loaded.get("pending"):
            for logger in trainer.loggers:
                logger.log_metrics(pending["metrics"], step=pending["step"])
        self._loaded = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after every n-th optimiser step and on a signal; at the end of an epoch its evaluation comes first."""
        self._out_of_time = ended_by_time(trainer)
        step = trainer.global_step
        ends = batch_idx + 1 >= trainer.num_training_batches or step == trainer.max_steps
        if trainer.fit_loop._should_accumulate() or ends:
            return
        stop = self.signals.agreed(trainer)
        if step and (self._due(trainer, "on_train_batch_end") or stop) and step != self._saved_step:
            self.save(trainer, self._state_in(trainer, "on_train_batch_end"))
        if stop:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of every n-th epoch but the last, whose final evaluation comes first."""
        self._out_of_time = ended_by_time(trainer)  # a timer may look here only
        step = trainer.global_step
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs or step == trainer.max_steps
        stop = self.signals.agreed(trainer)
        if (self._due(trainer, "on_train_epoch_end") and not last) or stop:
            self.save(trainer, {})
        if stop:
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the trained policy; remaining work (exports, pages) is done again after an interruption.

        A later run may set other limits (``max_epochs``, ``max_steps``).
        """
        self.save(trainer, {})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record that nothing is left to do; save a last step for good that was only saved before its evaluation."""
        self._begin(trainer)
        if self._loaded.get("hook"):  # the resumed run had no training left, so `on_train_end` was not called
            self.save(trainer, {})
            self._loaded = {}
        if trainer.is_global_zero and self.path.exists():
            self.path.with_name(FINISHED).touch()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release the folder."""
        self._lock.release()
        self.signals.forget()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Release the folder; after Ctrl-C, print what is saved and how to resume."""
        self.signals.forget()
        self._lock.release()
        if (
            isinstance(exception, KeyboardInterrupt)
            and trainer.is_global_zero
            and trainer.state.fn == TrainerFn.FITTING
        ):
            saved = newest(self.path.parent)
            kept = f"Saved: {saved}. {self._advice(trainer)}" if saved else "No checkpoint was written yet."
            print(f"\nInterrupted at step {trainer.global_step}. {kept}", flush=True)

    def _due(self, trainer: pl.Trainer, hook: Hook) -> bool:
        """Return whether the step is to be saved in ``hook``."""
        by_steps = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if hook != "on_train_epoch_end":
            return by_steps
        return by_steps or (self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0)

    # Around an evaluation.

    def before_evaluation(self, trainer: pl.Trainer, hook: Hook) -> None:
        """Save the step before its evaluation, if it is to be saved; collective."""
        self._begin(trainer)
        self.signals.listen(trainer)
        step = trainer.global_step
        last = trainer.current_epoch + 1 == trainer.max_epochs or step == trainer.max_steps
        ends = hook == "on_train_end" or (hook == "on_train_epoch_end" and last)
        if hook in ("on_train_start", "on_fit_end") or step in (self._evaluating_step, self._saved_step):
            return
        if ends or self._due(trainer, hook):
            self._save_evaluating(trainer, hook)

    def _save_evaluating(self, trainer: pl.Trainer, hook: Hook) -> None:
        self.save(trainer, self._state_in(trainer, hook) | {"hook": hook}, self.path.with_name(EVALUATING))
        self._evaluating_step = trainer.global_step

    @contextmanager
    def interruptible(self, trainer: pl.Trainer) -> Iterator[None]:
        """Let a signal end an evaluation at once; with several processes only if its step is saved."""
        self.signals.interrupt = trainer.world_size == 1 or trainer.global_step in (0, self._evaluating_step)
        try:
            self.signals.obey()
            yield
        finally:
            self.signals.interrupt = False

    def evaluation_interrupted(self, trainer: pl.Trainer, hook: Hook) -> None:
        """Save the step if it is not saved yet, and report it."""
        step = trainer.global_step
        if hook not in ("on_train_start", "on_fit_end") and step not in (self._evaluating_step, self._saved_step):
            self._save_evaluating(trainer, hook)
        self._say_stopped(trainer)

    def forget_evaluated(self, trainer: pl.Trainer) -> None:
        """Delete the checkpoint of the step just evaluated, whose model has collapsed; ``last.ckpt`` stays."""
        if trainer.is_global_zero:
            remove(self.path.with_name(EVALUATING))

    def _stop(self, trainer: pl.Trainer) -> None:
        """Let Lightning end the run after this hook, as it does on SIGTERM, and report what was saved."""
        trainer._signal_connector.received_sigterm = True
        self._say_stopped(trainer)

    def _say_stopped(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        saved = newest(self.path.parent)
        if saved is None:
            said = f"{self.signals.describe()}: the run ends before its first step; there is nothing to save."
        else:
            said = f"{self.signals.describe()}: the run is saved at step {trainer.global_step} ({saved}) and ends."
            if self.signals.preempted and is_named(trainer):
                said += " " + requeue()
            else:
                said += " " + self._advice(trainer)
        print(said, flush=True)

    def _advice(self, trainer: pl.Trainer) -> str:
        if is_named(trainer):
            return "The same command resumes it."
        if self.folder is None:
            return f"`dipo-lightning fit` with the same options and `--run {self.path.parent.parent}` resumes it."
        return f"The same options and `ckpt_path: {newest(self.path.parent)}` resume it."

    # Writing.

    def save(self, trainer: pl.Trainer, state: dict[str, Any], path: Path | None = None) -> None:
        """Write a checkpoint, a file or a folder of shards, atomically; collective.

        The default ``path`` is ``last.ckpt``, which also replaces ``evaluating.ckpt``. A `RunError` if it can't be
        written; the previous checkpoint is then unchanged.
        """
        if is_trial(trainer):
            return
        target = path or self.path
        optimizers = [described(optimizer) for optimizer in trainer.optimizers]
        self._state = state | {
            "stopped": trainer.should_stop and not self._out_of_time,
            "events": self._event_sizes(trainer),
            "optimizers": optimizers,
        }
        partial = target.with_name(target.name + ".partial")
        try:
            if trainer.is_global_zero:
                remove(partial)
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                replace(partial, target)
        except OSError as error:
            remove(partial)
            kept = newest(self.path.parent)
            before = f"The one before is whole: {kept}." if kept else "There is none before it."
            reason = error.strerror or str(error)
            raise RunError(f"The checkpoint {target} could not be written ({reason}). {before}") from error
        if target == self.path:
            self._saved_step = trainer.global_step
            if trainer.is_global_zero:
                remove(self.path.with_name(EVALUATING))
        trainer.strategy.barrier()

    def _state_in(self, trainer: pl.Trainer, hook: Hook) -> dict[str, Any]:
        """Return the state that only this callback knows, for a step saved in ``hook``."""
        if hook == "on_train_batch_end":
            return {"pending": self._loaded.get("pending") or self._not_yet_logged(trainer)}
        return {}

    def _not_yet_logged(self, trainer: pl.Trainer) -> dict[str, Any] | None:
        """Return the numbers of this step that Lightning will log after the hook in which the checkpoint is written."""
        if not trainer._logger_connector.should_update_logs:
            return None
        metrics = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        return {"metrics": metrics | {"epoch": trainer.current_epoch}, "step": step} if metrics else None

    def _event_sizes(self, trainer: pl.Trainer) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()
                sizes |= {path.name: path.stat().st_size for path in event_files(Path(logger.log_dir))}
        return sizes

    # State: plain values.

    def state_dict(self) -> dict[str, Any]:
        """Return the run's pending work and logs, the sizes of its event files, and whether a rule stopped it."""
        return self._state

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark an epoch cut off by ``max_steps``, which Lightning counts as done, as unfinished.

        Secrets among the hyper-parameters are left out of the file.
        """
        progress = checkpoint["loops"]["fit_loop"]
        if not progress["epoch_loop.batch_progress"]["is_last_batch"]:
            for epochs in progress["epoch_progress"].values():
                epochs["processed"] = epochs["completed"] = epochs["started"] - 1
        for name in ("hyper_parameters", "datamodule_hyper_parameters"):
            if name in checkpoint:
                checkpoint[name] = without_secrets(checkpoint[name])

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resume where the run was, up to this run's limits; a run that a rule stopped early stays stopped."""
        self._loaded = checkpoint["callbacks"].get(self.state_key, {})
        if self._loaded.get("stopped"):
            trainer.should_stop = True
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        limits = (epochs, trainer.max_epochs), (checkpoint["global_step"], trainer.max_steps)
        at_limit = any(limit is not None and 0 <= limit <= reached for reached, limit in limits)
        self._complete = trainer.should_stop or at_limit or "hook" in self._loaded
        if trainer.ckpt_path and self._record and not is_named(trainer):  # a script's ckpt_path is known only now
            self._compare(Path(trainer.ckpt_path).parent)
        self._check_optimizers(trainer)

    def _check_time(self, trainer: pl.Trainer) -> None:
        """Refuse a resume without any time left to train in; collective."""
        if not self._complete:
            refuse_without_time(trainer)
        self._out_of_time = not self._loaded.get("stopped") and is_out_of_time(trainer)

    def _check_optimizers(self, trainer: pl.Trainer) -> None:
        """Refuse the state of another optimiser, or of one with other options, as soon as both are known."""
        pairs = zip(self._loaded.get("optimizers", ()), map(described, trainer.optimizers), strict=False)
        for before, now in pairs:
            odd = [f"{name} {before[name]}, now {now.get(name)}" for name in before if before[name] != now.get(name)]
            if before["class"] != now["class"]:
                raise InputError(
                    f"The checkpoint was written with the optimizer {before['class']}, this run has {now['class']}, "
                    "which cannot load its state. Give the old one as model.optimizer, or train anew in another folder."
                )
            if odd:
                raise InputError(
                    f"The optimizer of the checkpoint had {'; '.join(odd)}, which resuming would keep. Give the old "
                    "options as model.optimizer, or train anew in another folder."
                )


def timers(trainer: pl.Trainer) -> list[Timer]:
    """Return the timers of the Trainer (``trainer.max_time``)."""
    return [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]


def is_out_of_time(trainer: pl.Trainer) -> bool:
    """Return whether a timer of the Trainer has no time left."""
    return any((left := one.time_remaining()) is not None and left <= 0 for one in timers(trainer))


def ended_by_time(trainer: pl.Trainer) -> bool:
    """Return whether a timer, and no rule, ends the run."""
    rules = (one for one in trainer.callbacks if isinstance(one, EarlyStopping))  # type: ignore[attr-defined]
    ruled = any(one.stopping_reason != EarlyStoppingReason.NOT_STOPPED for one in rules)
    return trainer.should_stop and is_out_of_time(trainer) and not ruled


def refuse_without_time(trainer: pl.Trainer) -> None:
    """Raise an `InputError` if a timer has no time left before the first step of this fit; collective."""
    if trainer.strategy.broadcast(is_out_of_time(trainer)):
        spent = timedelta(seconds=math.ceil(max(one.time_elapsed() for one in timers(trainer))))
        raise InputError(
            f"trainer.max_time leaves no time to train: the run has trained for {spent} already, and the time before "
            "its checkpoint counts. Give a larger trainer.max_time."
        )


def described(optimizer: Any) -> dict[str, Any]:
    """Return an optimiser's class and those of its options that are plain values."""
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in optimizer.defaults.items()}
    plain = {name: value for name, value in options.items() if isinstance(value, bool | int | float | str | list)}
    return {"class": type(optimizer).__name__, **plain}


def replay(trainer: pl.Trainer, pl_module: pl.LightningModule, hook: Hook) -> None:
    """Call the callbacks still pending in ``hook`` when a step was saved before its evaluation; collective.

    These are the first scheduled callback and all after it, in Lightning's order.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    first = next((place for place, one in enumerate(callbacks) if isinstance(one, Scheduled)), len(callbacks))
    rest = [one for one in callbacks[first:] if not isinstance(one, Checkpoint)]
    pl_module._current_fx_name = hook
    if hook == "on_train_batch_end":
        batch_idx = trainer.fit_loop.epoch_loop.batch_idx
        for one in rest:
            if isinstance(one, Scheduled | CheckpointBase) or getattr(one, "follows_evaluations", False):
                one.on_train_batch_end(trainer, pl_module, None, None, batch_idx)
    elif hook == "on_train_epoch_end":
        progress = trainer.fit_loop.epoch_progress.current
        progress.completed -= 1  # as in the hook; Lightning has counted the epoch since
        rest.sort(key=lambda one: isinstance(one, CheckpointBase | EarlyStopping))  # these come last
        for one in rest:
            one.on_train_epoch_end(trainer, pl_module)
        progress.completed += 1
    pl_module._current_fx_name = None


def newest(folder: Path) -> Path | None:
    """Return the checkpoint that a run resumes from, if there is one: of a step being evaluated, else the last."""
    for path in (folder / EVALUATING, folder / LAST):
        # The first process may just be renaming the old one: looked for in this order, one of the two is found.
        if path.with_name(path.name + ".old").exists() or path.exists():
            return path
    return None


def checkpoint_state(path: Path) -> dict[str, Any]:
    """Read the state of the `Checkpoint` callback in a checkpoint, after checking that this package wrote all of it."""
    return read_settled(path).get("callbacks", {}).get("Checkpoint", {})


def open_event_files(trainer: pl.Trainer) -> set[Path]:
    """Return the event files of this process."""
    writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return {Path(writer._get_file_writer().event_writer._file_name) for writer in writers}  # no public name


def drop_later_events(files: list[Path], sizes: dict[str, int]) -> None:
    """Truncate event files to their sizes at the checkpoint, given by name: the rest is logged again identically."""
    for path in files:
        size = sizes.get(path.name)
        try:
            if size is None:
                path.unlink()
            elif path.stat().st_size > size:
                with path.open("r+b") as file:
                    file.truncate(size)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}.") from error
