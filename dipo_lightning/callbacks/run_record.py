"""Record of a run in its folder (options, data, exports) and a lock, so that nothing else is trained into it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.json_files import write_json

CHECKPOINTS, RECORD, LOCK = "checkpoints", "run.json", "lock"

ANY_VALUE = frozenset({
    "run", "ckpt_path", "config", "private", "data.num_workers",
    "trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "trainer.profiler", "trainer.max_time", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.accelerator", "trainer.plugins", "trainer.log_every_n_steps", "trainer.enable_checkpointing",
    "trainer.inference_mode", "trainer.fast_dev_run",
    "model.reference_cache", "model.compile_blocks", "model.activation_checkpointing", "model.cpu_offload",
})  # fmt: skip
"""Options that a resumed run may change: where it runs and writes, and what it shows."""

ANY_CALLBACK = frozenset({
    "Checkpoint", "ModelCheckpoint", "ExportModel", "ResultsPage", "LearningRateMonitor", "DeviceStatsMonitor",
    "Timer", "ModelSummary", "RichModelSummary", "RichProgressBar", "TQDMProgressBar",
})  # fmt: skip
"""Callbacks that change no number of a run."""

_LOOKED_AT = 1 << 20
"""Bytes at either end of a model's file."""

MAY_GROW = ("trainer.max_epochs", "trainer.max_steps")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record in a folder of checkpoints; None where there is none.

    Raises:
        InputError: It can't be read.
    """
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"The run's record {folder / RECORD} can't be read ({error}); start in another folder."
        ) from error


def write_record(folder: Path, **content: Any) -> None:
    """Add ``content`` to the record of ``folder``, atomically."""
    write_json(folder / RECORD, (read_record(folder) or {}) | content)


def describe_run(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record holds of a run.

    Args:
        config: Its options, without secrets.
        data: Fingerprints of its rows.
    """
    options = (config.get("model") or {}).get("init_args") or {}
    return {"config": dict(config), "data": dict(data), "model": model_files(options.get("pretrained"))}


def model_files(pretrained: Any) -> str | None:
    """Return a hash of a local model's files by their sizes, beginnings and ends; None of a model of the hub.

    A quick look for other weights under the same name; a resume compares the weights themselves.
    """
    path = Path(str(pretrained)).expanduser()
    digest = hashlib.sha256()
    found = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("config.json")])
    for file in found:
        size = file.stat().st_size
        with file.open("rb") as content:
            start = content.read(_LOOKED_AT)
            content.seek(max(0, size - _LOOKED_AT))
            digest.update(f"{file.name} {size}".encode() + start + content.read(_LOOKED_AT))
    return digest.hexdigest() if found else None


def refuse_changes(record: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    """Make sure that a run goes on with the options and the data that it began with.

    Args:
        record: Of the run, from `read_record`.
        now: What this command would record, from `describe_run`.
        place: The run's folder, for the message.

    Raises:
        InputError: They differ in something that its results depend on.
    """
    rows = [side.get("data") or {} for side in (record, now)]
    changes = differences(record.get("config") or {}, now["config"], same_data=rows[0] == rows[1])
    for part in sorted(rows[0].keys() & rows[1].keys()):
        if rows[0][part] != rows[1][part]:
            counts = " then, ".join(str(side[part].get("rows")) for side in rows)
            changes.append(f"the {part} rows ({counts} now) have other texts")
    if record.get("model") and now["model"] and record["model"] != now["model"]:
        changes.append("the files of the model have changed")
    if changes:
        more = f"; and {len(changes) - 8} more" if len(changes) > 8 else ""
        raise InputError(
            f"The run in {place} began with other options, and would mix two runs: {'; '.join(changes[:8])}{more}. "
            "Give another folder to train anew, or the old options to resume this run."
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], same_data: bool) -> list[str]:
    """Name the options that differ and matter, each with both values.

    Args:
        before: Configuration of the run.
        now: Configuration of this command.
        same_data: The rows are known to be the same: a data file may have moved.
    """
    old, new = flat_options(before), flat_options(now)
    found = []
    for name in sorted(old.keys() | new.keys()):
        one, two = old.get(name), new.get(name)
        if one == two or _may_differ(name, one, two, same_data):
            continue
        found.append(f"{name} was {_short(one)}, now {_short(two)}")
    return found


def flat_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given (not None) by dotted name, without the parser's nesting of classes."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            if "class_path" in value:
                found[f"{name}.class"] = str(value["class_path"]).rpartition(".")[2]
                value = value.get("init_args") or {}
            for key, item in value.items():
                add(f"{name}.{key}" if name else str(key), item)
        elif value is not None:
            found[name] = value

    for name, value in config.items():
        if name == "trainer" and isinstance(value, Mapping):
            listed = value.get("callbacks") or []
            seen = Counter[str]()
            for callback in listed if isinstance(listed, list) else [listed]:
                path = str(callback.get("class_path", callback) if isinstance(callback, Mapping) else callback)
                seen[kind := path.rpartition(".")[2]] += 1
                add(f"trainer.callbacks.{kind}" + (f".{seen[kind]}" if seen[kind] > 1 else ""), callback)
            value = {key: item for key, item in value.items() if key != "callbacks"}
        add(str(name), value)
    return found


def _may_differ(name: str, before: Any, now: Any, same_data: bool) -> bool:
    if any(name == free or name.startswith(f"{free}.") for free in ANY_VALUE):
        return True
    if name.startswith("trainer.callbacks.") and name.split(".")[2] in ANY_CALLBACK:
        return True
    if name in MAY_GROW:
        return _limit(now) >= _limit(before)
    if isinstance(before, str) and isinstance(now, str):
        if _same_place(before, now):
            return True
        moved = not Path(before).exists() and Path(now).exists()  # the loaded weights are compared all the same
        return (name.startswith("data.") and same_data and Path(now).exists()) or (name == "model.pretrained" and moved)
    return False


def _limit(value: Any) -> float:
    return float("inf") if value in (None, -1) else float(value)


def _same_place(one: str, two: str) -> bool:
    paths = [Path(value).expanduser() for value in (one, two)]
    return all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve()


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


class FolderLock:
    """An exclusive lock on a folder, held by this process until it is released or ends, however it ends."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    @property
    def held(self) -> bool:
        """True if this process has the lock."""
        return self._file is not None

    @property
    def handle(self) -> int:
        """The file descriptor, for a child that is to hold the lock as long as it lives."""
        assert self._file is not None
        return self._file.fileno()

    def hold(self, folder: Path, patience: float = 0.0) -> None:
        """Take the lock; does nothing where the system has none.

        Args:
            folder: What is locked.
            patience: Seconds to wait for another process, such as the child of a command that was killed.

        Raises:
            InputError: Another process has it.
            RunError: The folder can't be written.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self.release()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"The run's folder {folder} cannot be written: {error.strerror or error}.") from error
        until = time.monotonic() + patience
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise
                    time.sleep(0.2)
        except BlockingIOError as error:
            file.seek(0)
            who = file.read().strip() or "another process"
            file.close()
            raise InputError(
                f"{folder} is in use by {who}: two runs would write over each other. Wait until it has ended, or name "
                "another folder."
            ) from error
        except OSError:  # a file system without locks
            file.close()
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        _held.append(self)

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None
            _held.remove(self)


_held: list[FolderLock] = []


def _close_in_child() -> None:
    """Let a forked loader process not keep a lock that its parent has given back or lost."""
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
