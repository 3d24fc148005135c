"""``fit --run FOLDER``: a folder that stands for one run, so that the same command goes on where it was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dipo_lightning.callbacks.checkpoint import FINISHED, FOLDER, LAST, MARK, event_files
from dipo_lightning.errors import InputError, RunError


def prepare_run(folder: Path) -> Path | None:
    """Make ``folder`` ready to start in or to go on in: what was logged after its last checkpoint is dropped.

    It will be computed and logged again, the same.

    Args:
        folder: The run's folder.

    Returns:
        The checkpoint to go on from, or None for a start.

    Raises:
        InputError: The folder holds something that is no run.
        RunError: The folder can't be written, or its checkpoint can't be read.
    """
    last, mark = folder / FOLDER / LAST, folder / FOLDER / MARK
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise InputError(f"{folder} is not empty and holds no run made with --run; name an empty folder.")
    sizes: dict[str, int] = {}
    old = last.with_name(LAST + ".old")
    if not last.exists() and old.exists():  # cut off between the two renames of a folder of shards
        old.rename(last)
    if last.exists():
        sizes = checkpoint_state(last).get("events", {})
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        for path in event_files(folder):
            _cut(path, sizes.get(path.name))
    except OSError as error:
        raise RunError(f"The run's folder {folder} cannot be written: {error.strerror or error}.") from error
    return last_checkpoint(folder)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run in ``folder`` goes on from, if there is one."""
    last = folder / FOLDER / LAST
    # The first process may be about to rename the old one: asked for in this order, one of the two is there.
    return last if any(path.exists() for path in (last.with_name(LAST + ".old"), last)) else None


def is_first_process() -> bool:
    """Whether this is the first process of all nodes, by the same sign that the Trainer will go by."""
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


def is_finished(folder: Path) -> bool:
    """Whether the run came to its end."""
    return (folder / FOLDER / FINISHED).exists()


def checkpoint_state(path: Path) -> dict[str, Any]:
    """Read what the `Checkpoint` callback left in a checkpoint, after checking that it is whole and one of ours.

    Raises:
        InputError: It is truncated, foreign or no checkpoint.
    """
    from dipo_lightning.models.checkpoint import read_settled

    return read_settled(path).get("callbacks", {}).get("Checkpoint", {})


def _cut(path: Path, size: int | None) -> None:
    """Cut a file to the size it had at the checkpoint; one that was not there then goes."""
    if size is None:
        path.unlink()
    elif path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)
