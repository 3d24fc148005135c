"""One run after the other, each a process of the ordinary command line; a finished one is not run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

import dipo_lightning
from dipo_lightning.comparison.configs import Config
from dipo_lightning.safety.text import printable

State = Literal["finished", "interrupted", "new"]
CONFIG, LOG, DONE = "run.yaml", "log.txt", "finished.json"


@dataclass(frozen=True)
class Run:
    """One method with one choice of settings and one seed.

    Attributes:
        method: The method's name.
        settings: Its settings in words.
        seed: Its seed.
        folder: Where everything of it lies.
        config: What ``fit`` reads.
    """

    method: str
    settings: str
    seed: int
    folder: Path
    config: Config

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return " ".join(filter(None, [self.method, f"({self.settings})" if self.settings else "", f"seed {self.seed}"]))

    @property
    def state(self) -> State:
        """Whether its results are there, or a checkpoint to go on from, or nothing that is of this config."""
        written = self.folder / CONFIG
        if not written.is_file() or yaml.safe_load(written.read_text(encoding="utf-8")) != self.config:
            return "new"
        if (self.folder / DONE).is_file():
            return "finished"
        return "interrupted" if checkpoint(self.folder) else "new"


@dataclass(frozen=True)
class Failure:
    """Something that did not end well, the last thing that it said, and where all of it can be read."""

    title: str
    reason: str
    log: Path | None = None

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.title}: {self.reason}" + (f" ({self.log})" if self.log else "")


def execute(run: Run, keep_checkpoints: bool = False) -> Failure | None:
    """Bring ``run`` to its end, from its last checkpoint if it has one; does nothing if it is finished.

    Returns:
        None, or why it failed.
    """
    state = run.state
    if state == "finished":
        return None
    if state == "new":
        make_room(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run.folder / "model", ignore_errors=True)  # what an interrupted export left
    path = run.folder / CONFIG
    path.write_text(yaml.safe_dump(run.config, sort_keys=False), encoding="utf-8")
    arguments = ["fit", "--config", str(path)]
    if state == "interrupted":
        arguments += ["--ckpt_path", str(checkpoint(run.folder))]
    started = time.monotonic()
    code = start(arguments, run.folder / LOG)
    if code:
        return Failure(run.title, last_words(run.folder / LOG, code), run.folder / LOG)
    (run.folder / DONE).write_text(json.dumps({"seconds": round(time.monotonic() - started, 1)}), encoding="utf-8")
    if not keep_checkpoints:  # they were there to go on from
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return None


def start(arguments: list[str], log: Path) -> int:
    """Run ``dipo-lightning ARGUMENTS`` as a process of its own, so that nothing of one run reaches the next.

    Args:
        arguments: Of the command line.
        log: What it prints is added to this file.

    Returns:
        Its exit code.
    """
    package = str(Path(dipo_lightning.__file__).resolve().parents[1])
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")]), package]  # a method of one's own; this package
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with log.open("a", encoding="utf-8") as file:
        print(f"$ dipo-lightning {' '.join(arguments)}", file=file, flush=True)
        command = [sys.executable, "-m", "dipo_lightning", *arguments]
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    found = list((folder / "checkpoints").glob("*.ckpt"))
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def last_words(log: Path, code: int) -> str:
    """Return the error that a run ended with, as far as its log tells."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    last = (errors or lines)[-1].removeprefix("error: ")
    return f"exit code {code}: {printable(last)}"


def make_room(run: Run) -> None:
    """Clear the folder of ``run``: an attempt without a checkpoint goes, what is of another config is kept aside."""
    written = run.folder / CONFIG
    if written.is_file() and yaml.safe_load(written.read_text(encoding="utf-8")) == run.config:
        shutil.rmtree(run.folder)
    if not run.folder.exists():
        return
    number = 1
    while (moved := run.folder.with_name(f"{run.folder.name}-earlier{number}")).exists():
        number += 1
    run.folder.rename(moved)
