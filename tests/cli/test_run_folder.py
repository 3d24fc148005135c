"""Preparation of a run's folder by one process, while the others wait for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dipo_lightning.callbacks.checkpoint import newest
from dipo_lightning.cli.main import main
from dipo_lightning.cli.run_folder import is_first_process, is_unstarted, prepare_run
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.run_folder import write_text
from tests.reliability.toy_run import write_config, write_inputs

SIGNS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS",
         "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_NAME")  # fmt: skip

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "unlearn"}

PLACES = {
    "one process": ({}, True),
    "started by Lightning": ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
    "torchrun, first": (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),
    "torchrun, second of the first node": (TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}, False),
    "torchrun, first of the second node": (TORCHRUN | {"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
    "srun, first": (SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, True),
    "srun, second of the first node": (SLURM | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}, False),
    "srun, first of the second node": (SLURM | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}, False),
    # srun starts one torchrun a node, which starts the processes
    "torchrun under srun": (SLURM | TORCHRUN | {"SLURM_PROCID": "0", "RANK": "1", "LOCAL_RANK": "1"}, False),
    "a shell in an allocation": ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, True),
    "its second process, by Lightning": (
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash", "LOCAL_RANK": "1", "NODE_RANK": "0"},
        False,
    ),
    "by hand, second node": ({"NODE_RANK": "1"}, False),
}


@pytest.mark.parametrize("place", PLACES)
def test_first_process_of_all_nodes(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, first = PLACES[place]
    for name in SIGNS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def test_the_other_processes_find_the_checkpoint_before_and_after_it_is_renamed(tmp_path: Path) -> None:
    """A folder of shards is replaced in two renames; a run that was cut off between them has the old one only."""
    run = tmp_path / "run"
    assert prepare_run(run) is None
    kept = run / "checkpoints"
    assert newest(kept) is None
    old = kept / "last.ckpt.old"
    old.mkdir(parents=True)
    assert newest(kept) == kept / "last.ckpt"
    old.rename(old.with_name("last.ckpt"))
    assert newest(kept) == kept / "last.ckpt"


def test_a_run_killed_before_its_record_is_started_anew_and_foreign_files_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(2):  # the second time a logger has written, and no record
        assert prepare_run(run) is None
        (run / "events.out.tfevents.1.host.2.0").touch()
    (run / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match="not empty and holds no run that can be resumed"):
        prepare_run(run)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "events.out.tfevents.1.host.2.0").touch()
    with pytest.raises(InputError, match="not empty and holds no run that can be resumed"):
        prepare_run(foreign)
    assert [path.name for path in foreign.iterdir()] == ["events.out.tfevents.1.host.2.0"]


def test_a_run_killed_while_its_configuration_was_written_is_started_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)  # killed before its lock was there
    (run / ".run.yaml.4711").write_text("seed")
    assert is_unstarted(run)
    assert prepare_run(run) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.notes.4711").touch()
    assert not is_unstarted(tmp_path / "other")


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, OSError])
def test_writing_that_is_interrupted_leaves_neither_a_part_nor_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    def interrupted(handle: int) -> None:
        raise ending

    (tmp_path / "run.yaml").write_text("old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(RunError if ending is OSError else ending):
        write_text(tmp_path / "run.yaml", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    assert (tmp_path / "run.yaml").read_text() == "old"


@pytest.mark.parametrize(("named", "private"), [(True, True), (True, False), (False, False)])
def test_a_run_is_private_unless_the_user_s_umask_is_to_count(
    tmp_path: Path, named: bool, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path, rows=2)
    config = write_config(tmp_path, tmp_path / "run", epochs=1)
    before = os.umask(0o022)
    try:
        options = ["--trainer.callbacks+=ExportModel", f"--private={private}"]
        options += [] if named else ["--run=null"]
        assert main(["fit", "--config", str(config), *options]) == 0
    finally:
        os.umask(before)
    root = tmp_path / "run" if named else next((tmp_path / "runs").rglob("config.yaml")).parent
    modes = {(path.is_dir(), oct(path.stat().st_mode & 0o777)) for path in [root, *root.rglob("*")]}
    assert (root / "model" / "model.safetensors").exists()
    assert modes == ({(True, "0o700"), (False, "0o600")} if private else {(True, "0o755"), (False, "0o644")})


@pytest.mark.parametrize(("command", "mode"), [("attack", "0o600"), ("export", "0o644")])
def test_what_other_commands_write_of_rows_is_private(
    tmp_path: Path, command: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"dipo_lightning.cli.{command}.{command}", lambda: (tmp_path / "file").touch())
    before = os.umask(0o022)
    try:
        assert main([command]) == 0
        assert oct(os.umask(0o022)) == "0o22"
    finally:
        os.umask(before)
    assert oct((tmp_path / "file").stat().st_mode & 0o777) == mode
