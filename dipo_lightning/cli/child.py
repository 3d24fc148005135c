"""Runs as child processes of the command line: skipped if finished, resumed if interrupted, ended with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import dipo_lightning
from dipo_lightning.callbacks.run_record import FolderLock
from dipo_lightning.cli import PARENT
from dipo_lightning.cli.run_folder import CONFIG, LOG
from dipo_lightning.errors import RunError
from dipo_lightning.evaluation.run_folder import PRIVATE, write_text
from dipo_lightning.safety.display import printable
from dipo_lightning.safety.redaction import without_secrets


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration as YAML, whole or not at all."""
    write_text(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def was_begun_with(config: Mapping[str, Any], folder: Path) -> bool:
    """Return whether `fit` began the run in ``folder`` with this configuration; False if there is none."""
    try:
        return yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) == without_secrets(config)
    except (OSError, ValueError, yaml.YAMLError):  # none, or one that was cut off in writing
        return False


def fit(config: Mapping[str, Any], folder: Path, lock: FolderLock | None = None, quiet: bool = False) -> None:
    """Run ``dipo-lightning fit --run FOLDER`` with a configuration as a child process, to the end.

    Args:
        config: Configuration of ``fit``; saved as ``run.yaml`` in the folder, without secrets.
        folder: The run folder.
        lock: Lock of the caller's folder, which the child holds as long as it lives.
        quiet: Write the output to ``log.txt`` in the folder instead of showing it.

    Raises:
        RunError: The run failed, with its last error.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    kept = without_secrets(config)
    write_config(folder / CONFIG, kept)
    log = folder / LOG if quiet else None
    if kept == config:
        code = start(["fit", "--config", str(folder / CONFIG), "--run", str(folder)], log, lock)
    else:
        with tempfile.TemporaryFile("w", encoding="utf-8") as file:  # without a name: nobody else opens it
            yaml.safe_dump(dict(config), file, sort_keys=False, allow_unicode=True)
            file.flush()
            command = ["fit", "--config", f"/dev/fd/{file.fileno()}", "--run", str(folder)]
            code = start(command, log, lock, [file.fileno()])
    if code:
        raise RunError(last_words(log, code) if log else f"The run in {folder} failed: {ending(code)} (see above).")


def start(
    arguments: list[str], log: Path | None = None, lock: FolderLock | None = None, handles: Sequence[int] = ()
) -> int:
    """Run ``dipo-lightning ARGUMENTS`` as a child that gets this process's signals and ends with it.

    Args:
        arguments: Arguments of the command line.
        log: File to which the output is appended; None to show it.
        lock: A lock that the child shares.
        handles: File descriptors that the child shares.

    Returns:
        The exit code.

    Raises:
        KeyboardInterrupt: This process was interrupted; the child has ended.
        SystemExit: This process was terminated (SIGTERM); the child has ended.
    """
    package = str(Path(dipo_lightning.__file__).resolve().parents[1])
    paths = [
        os.getcwd(),
        *filter(None, [os.environ.get("PYTHONPATH")]),
        package,
    ]  # the user's own classes; this package
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "dipo_lightning", *arguments]
    with _output(log, arguments) as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output and subprocess.STDOUT, env=environment,
            pass_fds=[*handles, *([] if lock is None or not lock.held else [lock.handle])],
        )  # fmt: skip
        with _forwarded_to(child) as received:
            try:
                code = child.wait()
            finally:
                if child.poll() is None:
                    child.terminate()
                    child.wait()
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if received:
        raise SystemExit(128 + received[0])
    return code


_BEGIN = "$ dipo-lightning "


@contextmanager
def _output(log: Path | None, arguments: list[str]) -> Iterator[Any]:
    if log is None:
        sys.stdout.flush()
        yield None
        return
    with log.open("a", encoding="utf-8") as file:
        print(f"{_BEGIN}{' '.join(arguments)}", file=file, flush=True)
        yield file


@contextmanager
def _forwarded_to(child: subprocess.Popen) -> Iterator[list[int]]:
    """Forward SIGTERM and SIGINT to a child within a block; yields the list of received signals."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        child.send_signal(number)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:  # which the child inherits
                before[number] = signal.signal(number, forward)
    except ValueError:  # not in the main thread, which gets the signals
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ending(code: int) -> str:
    """Return how a process ended, in words."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def last_words(log: Path, code: int) -> str:
    """Return the last error of the last attempt in a run's log, or else its last line unless a signal ended it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    begins = [number for number, line in enumerate(lines) if line.startswith(_BEGIN)]
    lines = lines[begins[-1] :] if begins else lines
    errors = [line for line in lines if line.startswith("error: ")]
    if code < 0 and not errors:
        return ending(code)
    last = (errors or lines)[-1].removeprefix("error: ")
    return f"{ending(code)}: {printable(last)}"
