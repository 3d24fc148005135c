"""A full disk, a file where a folder should be, and checkpoints and caches of something else: a sentence, code 2."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dipo_lightning.callbacks.checkpoint import Checkpoint
from dipo_lightning.cli.main import main
from dipo_lightning.evaluation import callback as evaluation
from dipo_lightning.reference import cache as position_cache
from tests.helpers.toys import save_toy
from tests.reliability.toy_run import differences, outcome, write_config, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, two other models and a whole run."""
    root = tmp_path_factory.mktemp("stays")
    write_inputs(root, rows=4)
    save_toy(root / "narrow", hidden_size=16)
    save_toy(root / "other", seed=9)
    assert main(["fit", "--config", str(write_config(root, root / "whole", epochs=2))]) == 0
    return root


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Path:
    """The config of a run that was cut off after its training: only its last checkpoint is left, and its cache."""
    run = tmp_path / "run"
    shutil.copytree(folder / "whole", run)
    shutil.copytree(folder / "whole-cache", tmp_path / "run-cache")
    (run / "checkpoints" / "finished").unlink()
    return write_config(folder, run, epochs=2)


def contents(root: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def fails(config: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Run the command and return its one sentence."""
    capsys.readouterr()
    assert main(["fit", "--config", str(config), *options]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    assert len(message) < 900, message
    return message


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_key(manifest: Path) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": "0" * 64}))


BROKEN: dict[str, tuple[str, Callable[[Path], Any], list[str], str]] = {
    "a truncated checkpoint": ("run/checkpoints/last.ckpt", truncate, [], "cannot be read as a checkpoint"),
    "an empty checkpoint": ("run/checkpoints/last.ckpt", lambda path: path.write_bytes(b""), [], "cannot be read"),
    "a foreign checkpoint": ("run/checkpoints/last.ckpt", lambda path: torch.save({"a": 1}, path), [], "resume from"),
    "a pickle": ("run/checkpoints/last.ckpt", lambda path: torch.save({"a": Path}, path), [], "more than tensors"),
    "a checkpoint of another architecture": (
        "run/checkpoints/last.ckpt", lambda path: None, ["--model.pretrained={}/narrow"], "model.pretrained was"
    ),
    "a checkpoint of other weights": (
        "run/checkpoints/last.ckpt", lambda path: None, ["--model.pretrained={}/other"], "model.pretrained was"
    ),
    "a checkpoint without the adapters": (
        "run/checkpoints/last.ckpt", lambda path: None, ["--model.lora.rank=2"], "model.lora.rank was not given, now 2"
    ),
    "a cache of other weights": ("run-cache/*/manifest.json", other_key, [], "of other data or weights"),
    "a cut cache": ("run-cache/*/values.bin", truncate, [], "is truncated"),
    "a cut cache, the larger one": ("run-cache/*/values.bin", truncate, [], "is truncated"),
    "a folder of something else": (
        "run/checkpoints/run.json", lambda path: path.unlink(), [], "is not empty and holds no run"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_or_foreign_is_refused_and_left_alone(
    case: str, folder: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, damage, options, said = BROKEN[case]
    paths = sorted(tmp_path.glob(place), key=lambda path: path.stat().st_size)
    path = paths[-1] if "larger" in case else paths[0]  # forget and retain rows have a cache each
    damage(path)
    before = contents(tmp_path)
    assert said in fails(config, capsys, *(option.format(folder) for option in options))
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("option", ["--run={}/file/run", "--model.reference_cache={}/file/cache"])
def test_a_file_where_a_folder_should_be(
    option: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    said = fails(write_config(folder, tmp_path / "run", epochs=2), capsys, option.format(tmp_path))
    assert "cannot be written" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, int, int], None]:
    """In the n-th call of a function files can't grow beyond some bytes: the kernel refuses what is more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(owner: Any, name: str, count: int, room: int) -> None:
        original, calls = getattr(owner, name), 0

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != count:
                return original(*arguments, **options)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            try:
                return original(*arguments, **options)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        monkeypatch.setattr(owner, name, counted)

    return fill


FULL: dict[str, tuple[Any, str, int, int, str]] = {
    "at the second checkpoint": (Checkpoint, "save", 2, 60_000, "could not be written"),
    "at an evaluation": (evaluation, "write_json", 2, 1_000, "could not be written"),
    "at the cache": (position_cache, "allocate", 1, 1_000, "cannot be written: File too large"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer, same disk
@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_ends_the_run_and_the_same_command_goes_on_when_there_is_room(
    case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], full_disk: Callable
) -> None:
    owner, name, count, room, said = FULL[case]
    config = write_config(folder, tmp_path / "run", epochs=2)
    full_disk(owner, name, count, room)
    message = fails(config, capsys)
    assert said in message
    if case == "at the second checkpoint":
        assert "The one before is whole" in message
        assert torch.load(tmp_path / "run" / "checkpoints" / "evaluating.ckpt", weights_only=True)["global_step"] == 1
    assert not [path for path in tmp_path.rglob("*.partial") if path.is_file()]  # a cache is a folder, and resumes
    assert main(["fit", "--config", str(config)]) == 0
    assert differences(outcome(tmp_path / "run"), outcome(folder / "whole")) == []


def test_the_configuration_that_the_others_break_is_good(config: Path, folder: Path) -> None:
    assert yaml.safe_load(config.read_text())["run"]
    assert main(["fit", "--config", str(config)]) == 0
    assert differences(outcome(config.with_suffix("")), outcome(folder / "whole")) == []
