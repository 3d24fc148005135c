"""One checkpoint that is always whole, and everything that going on from it exactly needs.

SIGTERM, and SLURM's notice before it preempts a job: the run ends after the step in hand, saved.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint as CheckpointBase
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dipo_lightning.errors import InputError, RunError

FOLDER, LAST, FINISHED = "checkpoints", "last.ckpt", "finished"
MARK = "run"  # a file beside the checkpoint of a run that the same command goes on with


class Checkpoint(CheckpointBase):
    """Keeps ``checkpoints/last.ckpt`` in the run's folder; with ``fit --run FOLDER`` the same command goes on from it.

    The file is written under another name, to the disk, and then renamed: it is whole, or the one before is still
    there. It is written after the evaluation of its step, and notes how far the event files went. On SIGTERM, and on
    the signal by which SLURM announces preemption (SIGUSR1, ``sbatch --signal=SIGUSR1@90``), the run saves after the
    step in hand and ends; a run with ``--run`` is then queued again, but for ``SLURMEnvironment(auto_requeue=False)``.

    Args:
        every_n_epochs: Save at the end of every n-th epoch; None for not at epochs. Always at the end of training.
        every_n_steps: Save after every n-th optimiser step; None for not at steps.
        folder: Where to; None for ``checkpoints`` in the run's log folder.
    """

    def __init__(
        self, every_n_epochs: int | None = 1, every_n_steps: int | None = None, folder: str | None = None
    ) -> None:
        for option, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise InputError(f"Checkpoint.{option} is {value}; it must be at least 1, or null for never.")
        self.every_n_epochs, self.every_n_steps, self.folder = every_n_epochs, every_n_steps, folder
        self.path = Path(LAST)
        self._saved_step: int | None = None
        self._state: dict[str, Any] = {}
        self._pending: dict[str, Any] | None = None
        self.signals = StopSignals()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Decide where it is written; collective."""
        folder = (
            Path(trainer.log_dir or trainer.default_root_dir) / FOLDER if self.folder is None else Path(self.folder)
        )
        self.path = trainer.strategy.broadcast(folder) / LAST
        self._saved_step = None

    @property
    def last_good(self) -> Path | None:
        """The checkpoint that a run can go on from, if there is one."""
        return self.path if self.path.exists() else None

    # When it is written.

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what the interrupted run had computed and not yet logged when it was saved; listen for signals."""
        self.signals.listen(trainer)
        pending, self._pending = self._pending, None
        if pending is not None:
            for logger in trainer.loggers:
                logger.log_metrics(pending["metrics"], step=pending["step"])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after every n-th optimiser step and on a signal; at the end of an epoch its evaluation comes first."""
        step = trainer.global_step
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        ends = batch_idx + 1 >= trainer.num_training_batches or step == trainer.max_steps
        in_step = trainer.fit_loop._should_accumulate()
        if in_step or ends:
            return
        stop = self.signals.agreed(trainer)
        if step and (due or stop) and step != self._saved_step:
            self.save(trainer, {"pending": self._not_yet_logged(trainer)})
        if stop:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of every n-th epoch but the last, whose final evaluation comes first."""
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        last = trainer.should_stop or epoch == trainer.max_epochs or step == trainer.max_steps
        due = self.every_n_epochs is not None and epoch % self.every_n_epochs == 0
        due = due or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        stop = self.signals.agreed(trainer)
        if (due and not last) or stop:
            self.save(trainer, {})
        if stop:
            self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        """Let Lightning end the run after this hook, as it does on SIGTERM, and say what was saved."""
        trainer._signal_connector.received_sigterm = True
        if trainer.is_global_zero:
            said = f"{self.signals.describe()}: the run is saved at step {trainer.global_step} ({self.path}) and ends."
            if self.signals.preempted and self.path.with_name(MARK).exists():
                said += " " + requeue()
            print(said, flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the trained policy; what is left to do (exports, pages) is done again after an interruption.

        The limits of the run (``max_epochs``, ``max_steps``) are the next one's to set; a stop rule's word stays.
        """
        self.save(trainer, {"stopped": trainer.should_stop})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that nothing is left to do."""
        if trainer.is_global_zero and self.path.exists():
            self.path.with_name(FINISHED).touch()

    # How it is written.

    def save(self, trainer: pl.Trainer, state: dict[str, Any]) -> None:
        """Write ``last.ckpt``, a file or a folder of shards, whole or not at all; collective.

        Raises:
            RunError: It can't be written; the checkpoint before it is as it was.
        """
        self._state = state | {"events": self._event_sizes(trainer)}
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            if trainer.is_global_zero:
                remove(partial)
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                replace(partial, self.path)
        except (OSError, RuntimeError) as error:  # torch's writer says a full disk with a RuntimeError
            if isinstance(error, RuntimeError) and "write" not in str(error):
                raise
            remove(partial)
            before = f"The one before is whole: {self.path}." if self.path.exists() else "There is none before it."
            reason = str(error).splitlines()[0]
            raise RunError(f"The checkpoint {self.path} could not be written ({reason}). {before}") from error
        trainer.strategy.barrier()
        self._saved_step = trainer.global_step

    def _not_yet_logged(self, trainer: pl.Trainer) -> dict[str, Any] | None:
        """What Lightning will log of this step, after the hook in which the checkpoint is written."""
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

    # What it holds: plain values.

    def state_dict(self) -> dict[str, Any]:
        """Return what the run had left to log, how large its event files were, and whether it was stopped early."""
        return self._state

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note that an epoch which ``max_steps`` cut off, and Lightning counts as done, is left to go on with."""
        progress = checkpoint["loops"]["fit_loop"]
        if not progress["epoch_loop.batch_progress"]["is_last_batch"]:
            for epochs in progress["epoch_progress"].values():
                epochs["processed"] = epochs["completed"] = epochs["started"] - 1

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on where the run was, up to the limits of this one; a run that was stopped early stays stopped."""
        state = checkpoint["callbacks"].get(self.state_key, {})
        self._pending = state.get("pending")
        if state.get("stopped"):
            trainer.should_stop = True


def event_files(folder: Path) -> Iterator[Path]:
    """TensorBoard's event files of a run."""
    yield from sorted(folder.glob("events.out.tfevents.*"))


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace(partial: Path, path: Path) -> None:
    """Put ``partial`` in the place of ``path`` after it has reached the disk."""
    for file in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
        sync(file)
    if path.is_dir() or (partial.is_dir() and path.exists()):  # a folder can't be replaced in one step
        old = path.with_name(path.name + ".old")
        remove(old)
        path.rename(old)
        partial.rename(path)
        remove(old)
    else:
        partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class StopSignals:
    """Notes a signal and does nothing more; all processes then agree to stop at the same step.

    Lightning's own handlers save in the middle of whatever is being computed (SLURM), or start a collective there
    (SIGTERM). Neither can be gone on from exactly, and the second hangs where ranks get the signal at different steps.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.preempted = False

    def listen(self, trainer: pl.Trainer) -> None:
        """Take the place of Lightning's handlers, which the Trainer removes when it ends."""
        self.received, self.preempted = None, False
        slurm = slurm_environment(trainer)
        signals = [signal.SIGTERM]
        if slurm is not None and slurm.auto_requeue and slurm.requeue_signal is not None:
            signals.append(slurm.requeue_signal)
        try:
            for number in signals:
                signal.signal(number, self._note)
        except ValueError:  # not in the main thread: whoever started it stops it
            return

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.preempted = self.preempted or number != signal.SIGTERM

    def agreed(self, trainer: pl.Trainer) -> bool:
        """Whether some process has been told to stop; collective, so that all save at the same step."""
        told = self.received is not None or trainer.received_sigterm
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        return told

    def describe(self) -> str:
        """Name what came."""
        if self.preempted:
            return "SLURM's notice of preemption"
        return "SIGTERM"


def slurm_environment(trainer: pl.Trainer) -> SLURMEnvironment | None:
    """Return what the Trainer knows of SLURM, if it runs under it."""
    connector: Any = trainer._accelerator_connector
    environment = connector.cluster_environment
    return environment if isinstance(environment, SLURMEnvironment) else None


def requeue() -> str:
    """Ask SLURM to start this job again, and say what came of it."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"[0-9_]+", job):
        return "SLURM_JOB_ID is not set, so the job was not queued again."
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        rank_zero_warn(f"scontrol requeue {job} cannot be run: {error.strerror}", category=UserWarning)
        return f"Job {job} was not queued again."
    if done.returncode:
        reason = done.stderr.strip() or f"code {done.returncode}"
        rank_zero_warn(f"scontrol requeue {job} failed: {reason}", category=UserWarning)
        return f"Job {job} was not queued again."
    return f"Job {job} is queued again and will go on from there."
