"""Folder of a run: atomic writes, its record (options, data, exports), and its lock."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.logs import evaluations_of_runs, last_of_each
from dipo_lightning.evaluation.run_folder import write_json
from dipo_lightning.models.loading import local_files
from dipo_lightning.safety.paths import with_home


class StreamingIO(TorchCheckpointIO):
    """Reader and writer of Lightning's checkpoint files that streams them to and from their disk.

    Lightning's own writer keeps a second copy of the whole file in memory and passes it through the system's temporary
    folder; its reader loads all of it. Remote paths are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``path`` atomically."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            torch.save(checkpoint, partial)
            replace(partial, target)
        except RuntimeError as error:  # how torch's writer says that the disk is full
            if not any(sign in str(error) for sign in ("iostream", "unexpected pos", "PytorchStreamWriter")):
                raise
            raise OSError(errno.ENOSPC, "no room on the disk, or it can't be written", str(target)) from error
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read ``path``, each tensor on access."""
        if "://" in str(path) or not Path(path).is_file():
            return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace(partial: Path, path: Path) -> None:
    """Replace ``path`` with ``partial``, once ``partial`` has reached the disk."""
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


CHECKPOINTS, RECORD, LOCK = "checkpoints", "run.json", "lock"

ANY_VALUE = frozenset({
    "run", "ckpt_path", "config", "private", "data.num_workers",
    "trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "trainer.profiler", "trainer.max_time", "trainer.devices", "trainer.num_nodes", "trainer.strategy",
    "trainer.accelerator", "trainer.plugins", "trainer.log_every_n_steps", "trainer.enable_checkpointing",
    "trainer.inference_mode", "trainer.fast_dev_run",
    "model.reference_cache", "model.compile_blocks", "model.activation_checkpointing", "model.cpu_offload",
})  # fmt: skip
"""Options that a resumed run may change: hardware, output paths and display."""

ANY_CALLBACK = frozenset({
    "Checkpoint", "ModelCheckpoint", "ExportModel", "ResultsPage", "LearningRateMonitor", "DeviceStatsMonitor",
    "Timer", "ModelSummary", "RichModelSummary", "RichProgressBar", "TQDMProgressBar",
})  # fmt: skip
"""Callbacks that change no number of a run."""

_LOOKED_AT, _PLACES = 1 << 16, 64
"""Bytes that enter the hash of a model's file at each place, and number of these places, evenly over the file."""

MAY_GROW = ("trainer.max_epochs", "trainer.max_steps")

SOURCES = ("data.data", "data.forget", "data.retain", "data.train", "data.alternatives")
"""Options that name files of rows, which may have moved."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record in a folder of checkpoints; None if there is none."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"The run's record {folder / RECORD} cannot be read ({error}); start in another folder."
        ) from error


def write_record(folder: Path, **content: Any) -> None:
    """Add ``content`` to the record of ``folder``, atomically."""
    write_json(folder / RECORD, (read_record(folder) or {}) | content)


def describe_run(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's entries in its record."""
    options = (config.get("model") or {}).get("init_args") or {}
    model = model_files(options.get("pretrained"))
    return {"config": dict(config), "data": dict(data), "model": model, "retain_logs": retain_logs(config)}


def model_files(pretrained: Any) -> str | None:
    """Return a hash of the sizes and of parts of a local model's files; None for a model of the hub.

    A quick check for other weights, another tokenizer or chat template under the same name; a resume compares the
    weights themselves.
    """
    digest = hashlib.sha256()
    found = local_files(str(pretrained))
    for file in found:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for place in range(_PLACES):
                content.seek(max(0, size - _LOOKED_AT) * place // (_PLACES - 1))
                digest.update(content.read(_LOOKED_AT))
    return digest.hexdigest() if found else None


def retain_logs(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of each retain log on this machine that ``config`` names; of a folder, of every evaluation's last.

    The keys are the path as given, and the evaluation's name in a folder.
    """
    found = {}
    for option, path in flat_options(config).items():
        if option.endswith(".retain_log"):
            place = with_home(str(path))
            files = [place] if place.is_file() else last_of_each(evaluations_of_runs(place.rglob("*_epoch=*.json")))
            for file in files:
                name = "" if file == place else f" {file.name.partition('_epoch=')[0]}"
                found[f"{path}{name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def other_logs(record: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Return the retain logs that a run read, by its record, and that have another content in ``now``."""
    before = record.get("retain_logs") or {}
    return [path for path in sorted(before.keys() & now.keys()) if before[path] != now[path]]


def refuse_changes(record: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    """Refuse to resume a run with other options or data than it began with.

    Args:
        record: The run's record, from `read_record`.
        now: The record of this command, from `describe_run`.
        place: The run's folder, for the message.

    Raises:
        InputError: They differ in something that the results depend on.
    """
    rows = [side.get("data") or {} for side in (record, now)]
    same_model = record.get("model") is not None and record["model"] == now["model"]
    changes = differences(record.get("config") or {}, now["config"], rows[0] == rows[1], same_model)
    for part in sorted(rows[0].keys() & rows[1].keys()):
        if rows[0][part] != rows[1][part]:
            counts = " then, ".join(str(side[part].get("rows")) for side in rows)
            changes.append(f"the {part} rows ({counts} now) have other texts")
    if record.get("model") and now["model"] and record["model"] != now["model"]:
        changes.append("the files of the model have changed")
    changes += [f"the retain log {path} has another content" for path in other_logs(record, now["retain_logs"])]
    if changes:
        more = f"; and {len(changes) - 8} more" if len(changes) > 8 else ""
        raise InputError(
            f"The run in {place} began with other options, and would mix two runs: {'; '.join(changes[:8])}{more}. "
            "Give another folder to train anew, or the old options to resume this run."
        )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], same_data: bool, same_model: bool, given_now: bool = False
) -> list[str]:
    """List the relevant options that differ, with both values.

    With ``same_data`` a data file may have moved, with ``same_model`` the model; with ``given_now`` options that
    ``now`` leaves out do not count.
    """
    old, new = flat_options(before), flat_options(now)
    found = []
    for name in sorted(new if given_now else old.keys() | new.keys()):
        one, two = old.get(name), new.get(name)
        if one == two or _may_differ(name, one, two, same_data, same_model):
            continue
        found.append(f"{name} was {_short(one)}, now {_short(two)}")
    return found


def flat_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given (not None) by dotted name, without the levels ``class_path``, ``init_args``."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        """Add an option under its dotted name, or those inside it where it is a section."""
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


def _may_differ(name: str, before: Any, now: Any, same_data: bool, same_model: bool) -> bool:
    if any(name == free or name.startswith(f"{free}.") for free in ANY_VALUE):
        return True
    if name.startswith("trainer.callbacks.") and name.split(".")[2] in ANY_CALLBACK:
        return True
    if name in MAY_GROW:
        return _limit(now) >= _limit(before)
    if isinstance(before, str) and isinstance(now, str):
        if _same_place(before, now):
            return True
        gone = not with_home(before).exists()
        if not with_home(now).exists():
            return False
        if name in ("model.pretrained", "data.tokenizer"):
            return same_model and gone
        is_path = len(Path(before).parts) > 1 or Path(before).suffix != ""  # of an own data module
        return same_data and (name in SOURCES or (name.startswith("data.") and gone and is_path))
    return False


def _limit(value: Any) -> float:
    return float("inf") if value in (None, -1) else float(value)


def _same_place(one: str, two: str) -> bool:
    paths = [with_home(value) for value in (one, two)]
    return all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve()


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


PATIENCE = 30.0
"""Seconds that a command waits for the run of a killed one, which may still be saving."""
HELD_BY = "process"
"""First word of a lock's file."""
LOCKED = "two runs would write over each other. Wait until it has ended, or name another folder."
"""Advice of a refusal of a folder that another process has."""


class FolderLock:
    """Exclusive lock on a folder, held by this process until it releases it or ends in any way.

    As a context it is released at the end of the block.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *reason: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """True if this process has the lock."""
        return self._file is not None

    @property
    def handle(self) -> int:
        """File descriptor, for a child process that holds the lock as long as it lives."""
        assert self._file is not None
        return self._file.fileno()

    def hold(self, folder: Path, patience: float = 0.0, advice: str = LOCKED) -> None:
        """Take the lock, waiting up to ``patience`` seconds; does nothing on a system without file locks.

        ``advice`` follows the name of the other process in the refusal.

        Raises:
            InputError: Another process has it, or a file of the user's has the lock's name.
            RunError: The folder can't be written.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self.release()
        if (folder / LOCK).exists() and not is_lock(folder / LOCK):
            raise InputError(f"{folder / LOCK} is no file of this package, which writes one of that name: rename it.")
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
            raise InputError(f"{folder} is in use by {who}: {advice}") from error
        except OSError:  # a file system without locks
            file.close()
            return
        try:
            file.truncate(0)
            file.write(f"{HELD_BY} {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except OSError as error:  # a full disk
            with suppress(OSError):  # what could not be written is tried again
                file.close()
            raise RunError(f"The run's folder {folder} cannot be written: {error.strerror or error}.") from error
        self._file = file
        _held.append(self)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None
            _held.remove(self)


def is_lock(path: Path) -> bool:
    """Return whether a file is one of a `FolderLock`, and no user's file of that name."""
    try:
        with path.open("rb") as file:
            return file.read(len(HELD_BY)) in (b"", HELD_BY.encode())
    except OSError:
        return False


_held: list[FolderLock] = []


def _close_in_child() -> None:
    """Keep a forked loader process from holding a lock that its parent has released or lost."""
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
