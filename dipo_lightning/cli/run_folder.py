"""Folder of a single run (``fit --run FOLDER``), from which the same command resumes after an interruption."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from dipo_lightning.callbacks.checkpoint import FINISHED, checkpoint_state, newest
from dipo_lightning.callbacks.run_record import CHECKPOINTS, LOCK, RECORD, read_record
from dipo_lightning.data.rows import fingerprints
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.run_folder import PRIVATE

CONFIG, LOG = "run.yaml", "log.txt"
"""Files of a command that starts runs, in their folders."""

TENSORBOARD, CSV = "lightning.pytorch.loggers.TensorBoardLogger", "lightning.pytorch.loggers.CSVLogger"
DEFAULT = "dipo_lightning.evaluation.tensorboard.RunLogger"
"""Logger if the config names none."""


def is_unstarted(folder: Path) -> bool:
    """Return whether a folder holds at most what is written before a run: its configuration, also cut off, and a log.

    A folder for checkpoints may be there, too, without a file.
    """
    kept = folder / CHECKPOINTS
    others = (path for path in folder.iterdir() if path.name not in (CONFIG, LOG) and path != kept)
    return all(path.match(f".{CONFIG}.*") for path in others) and not (kept.exists() and any(kept.iterdir()))


def prepare_run(folder: Path, mode: int = PRIVATE) -> Path | None:
    """Return the checkpoint to resume from, or None for a new run; the folder is made if absent.

    Raises:
        InputError: The folder holds something other than a run, or its checkpoint cannot be read.
        RunError: It cannot be made.
    """
    kept = folder / CHECKPOINTS
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=mode, exist_ok=True)
    except OSError as error:
        raise RunError(f"The run's folder {folder} cannot be written: {error.strerror or error}.") from error
    if any(folder.iterdir()) and not (kept / RECORD).exists():
        ours = (kept / LOCK).exists() or is_unstarted(folder)
        if not ours or any(kept.glob("*.ckpt")):  # else it was killed, or refused, before its record was written
            raise InputError(f"{folder} is not empty and holds no run that can be resumed; name an empty folder.")
    try:
        kept.mkdir(mode=mode, exist_ok=True)
        (kept / LOCK).touch(mode=mode & 0o666)  # the sign of a run, before any logger writes
    except OSError as error:
        raise RunError(f"The run's folder {folder} cannot be written: {error.strerror or error}.") from error
    found = newest(kept)
    if found is not None:
        old = found.with_name(found.name + ".old")
        if not found.exists() and old.exists():  # cut off between the two renames of a folder of shards
            old.rename(found)
        checkpoint_state(found)
    return found


def read_fingerprints(datamodule: Any, pretrained: str | None) -> dict[str, Any]:
    """Read the rows of a data module, without tokenising them, and return their fingerprints."""
    reader = copy.copy(datamodule)
    if hasattr(reader, "read"):
        reader.read()
    elif hasattr(reader, "check"):
        reader.tokenizer_source = getattr(reader, "tokenizer_source", None) or pretrained
        reader.check()
    return fingerprints(reader)


def is_finished(folder: Path) -> bool:
    """Return whether the run in ``folder`` is finished."""
    return (folder / CHECKPOINTS / FINISHED).exists()


def asks_for_more(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether ``config`` sets other limits of epochs, steps or time than the finished run in ``folder`` had."""
    record = read_record(folder / CHECKPOINTS) or {}
    before, now = (side.get("trainer") or {} for side in (record.get("config") or {}, config))
    return any(before.get(name) != now.get(name) for name in ("max_epochs", "max_steps", "max_time"))


def loggers_in(folder: Path, given: Any) -> Any:
    """Return the config's loggers, or else TensorBoard's, with their files in the run folder."""
    if given is False:
        return False
    if given in (None, True):
        given = Namespace(class_path=DEFAULT, init_args=Namespace())
    loggers = given if isinstance(given, list) else [given]
    return [_logger_in(folder, logger) for logger in loggers]


def _logger_in(folder: Path, logger: Namespace) -> Namespace:
    options = Namespace(**vars(logger.get("init_args") or Namespace()))
    if logger.class_path in (TENSORBOARD, DEFAULT):
        options.update(Namespace(save_dir=str(folder), name="", version=""))
    elif logger.class_path == CSV:  # it empties an existing folder, so each part of a run gets a new version
        options.update(Namespace(save_dir=str(folder), name="csv", version=None))
    elif options.get("save_dir", "") in (None, ".", "lightning_logs"):
        options.save_dir = str(folder)
    elif options.get("save_dir") == "./mlruns":
        options.save_dir = str(folder / "mlruns")
    past = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.stat().st_mtime)
    if logger.class_path.endswith(".WandbLogger") and past and not options.get("id"):
        options.id = past[-1].name.rpartition("-")[2]  # of the run that is resumed
    return Namespace(class_path=logger.class_path, init_args=options)


def is_first_process() -> bool:
    """Return whether this is the first process of all nodes, by the environment that the Trainer will detect."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.lsf import LSFEnvironment
    from lightning.fabric.plugins.environments.mpi import MPIEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
        if kind.detect():
            return kind().global_rank() == 0
    started = LightningEnvironment()  # its global rank is known only once the Trainer is there
    return started.node_rank() == 0 and started.local_rank() == 0
