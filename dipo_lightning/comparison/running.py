"""One run of a comparison: its state, and the child process that finishes it."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from dipo_lightning.callbacks.checkpoint import newest
from dipo_lightning.callbacks.run_record import CHECKPOINTS, FolderLock, model_files, read_record
from dipo_lightning.cli import child
from dipo_lightning.cli.run_folder import CONFIG, LOG, is_finished, read_fingerprints
from dipo_lightning.comparison.configs import Config, import_class
from dipo_lightning.errors import RunError
from dipo_lightning.safety.redaction import without_secrets

State = Literal["finished", "interrupted", "new"]


@dataclass(frozen=True)
class Run:
    """One method with one choice of settings and one seed.

    Attributes:
        method: The method's name.
        settings: Its settings in words.
        seed: Its seed.
        folder: Where everything of it lies.
        config: What ``fit`` reads.
        changes_data: Whether its settings say which rows there are.
    """

    method: str
    settings: str
    seed: int
    folder: Path
    config: Config
    changes_data: bool = False

    @property
    def title(self) -> str:
        """Title of the run, in a line."""
        return " ".join(filter(None, [self.method, f"({self.settings})" if self.settings else "", f"seed {self.seed}"]))

    @property
    def state(self) -> State:
        """State of the run: its results are there, a checkpoint to resume from, or nothing of this config and data."""
        if not self._same_config() or self._outdated():
            return "new"
        if is_finished(self.folder):
            return "finished"
        return "interrupted" if newest(self.folder / CHECKPOINTS) else "new"

    def _same_config(self) -> bool:
        try:
            return yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8")) == without_secrets(self.config)
        except (OSError, ValueError, yaml.YAMLError):  # none, or one that was cut off in writing
            return False

    def _outdated(self) -> bool:
        """Tell whether the folder is of other rows or of another model under the same names."""
        record = read_record(self.folder / CHECKPOINTS)
        if record is None:
            return False
        pretrained = self.config["model"]["init_args"].get("pretrained")
        rows = rows_now(json.dumps([self.config["data"], pretrained], sort_keys=True))
        return record.get("data") != rows or record.get("model") != model_files(pretrained)


@functools.cache
def rows_now(section: str) -> dict[str, Any]:
    """Return the fingerprints of the rows that a config names, read once a process.

    Args:
        section: Of the data, and the model's name, as JSON.
    """
    data, pretrained = json.loads(section)
    return read_fingerprints(import_class(data["class_path"])(**data["init_args"]), pretrained)


@dataclass(frozen=True)
class Failure:
    """Run that failed: its last message, and the log that has all of them."""

    title: str
    reason: str
    log: Path | None = None

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.title}: {self.reason}" + (f" ({self.log})" if self.log else "")


def execute(run: Run, keep_checkpoints: bool = False, lock: FolderLock | None = None) -> Failure | None:
    """Bring ``run`` to its end, from its last checkpoint if it has one; does nothing if it is finished.

    Args:
        run: The run.
        keep_checkpoints: Keep what it could be resumed from.
        lock: Of the comparison's folder.

    Returns:
        None, or why it failed.
    """
    state = run.state
    if state == "finished":
        return None
    if state == "new":
        make_room(run)
    try:
        child.fit(run.config, run.folder, lock, quiet=True)
    except RunError as error:
        return Failure(run.title, str(error), run.folder / LOG)
    if not keep_checkpoints:
        for path in (run.folder / CHECKPOINTS).glob("*.ckpt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def make_room(run: Run) -> None:
    """Clear the folder of ``run``: an attempt without a checkpoint goes, what is of another config is kept aside."""
    if run._same_config() and not is_finished(run.folder) and not newest(run.folder / CHECKPOINTS):
        shutil.rmtree(run.folder)
    if not run.folder.exists():
        return
    number = 1
    while (moved := run.folder.with_name(f"{run.folder.name}-earlier{number}")).exists():
        number += 1
    run.folder.rename(moved)
