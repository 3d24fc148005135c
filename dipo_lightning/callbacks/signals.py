"""Stop signals (SIGTERM, SLURM's notice of preemption), obeyed at a step from which a run resumes exactly.

Lightning's own handlers save in the middle of a computation (SLURM), or start a collective there (SIGTERM). Neither
can be resumed exactly, and the second hangs if ranks get the signal at different steps.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.evaluation.schedule import StopRequested


class StopSignals:
    """Stop signals: the handler records one, and all processes then agree to stop at the same step.

    Attributes:
        interrupt: Whether a signal ends the current computation (an evaluation of a saved step) at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.preempted = self.interrupt = False
        self._trainer: pl.Trainer | None = None

    def listen(self, trainer: pl.Trainer) -> None:
        """Replace Lightning's handlers, which the Trainer removes when it ends; once per fit."""
        if self._trainer is trainer:
            return
        self.received, self.preempted, self._trainer = None, False, trainer
        slurm = slurm_environment(trainer)
        signals = [signal.SIGTERM]
        if slurm is not None and slurm.auto_requeue and slurm.requeue_signal is not None:
            signals.append(slurm.requeue_signal)
        try:
            for number in signals:
                signal.signal(number, self._note)
        except ValueError:  # not in the main thread: its owner must stop the run
            return

    def forget(self) -> None:
        """Reset for the next fit."""
        self._trainer = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, number
        self.preempted = self.preempted or number != signal.SIGTERM
        launcher: Any = self._trainer.strategy.launcher if self._trainer is not None else None
        if first and launcher is not None:
            launcher.kill(number)  # the processes of this run that this one started
        self.obey()

    def obey(self) -> None:
        """End the current computation if ``interrupt`` allows it and a signal has come."""
        if self.interrupt and self.received is not None:
            self.interrupt = False
            raise StopRequested

    def agreed(self, trainer: pl.Trainer) -> bool:
        """Return whether some process has been told to stop; collective, so that all save at the same step."""
        told = self.received is not None or trainer.received_sigterm
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        return told

    def describe(self) -> str:
        """Name of the signal received."""
        return "SLURM's notice of preemption" if self.preempted else "SIGTERM"


def slurm_environment(trainer: pl.Trainer) -> SLURMEnvironment | None:
    """Return the Trainer's SLURM environment, if it runs under SLURM."""
    connector: Any = trainer._accelerator_connector
    environment = connector.cluster_environment
    return environment if isinstance(environment, SLURMEnvironment) else None


def requeue() -> str:
    """Ask SLURM to requeue this job, and return the outcome as a sentence."""
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
    return f"Job {job} is queued again and will resume from there."
