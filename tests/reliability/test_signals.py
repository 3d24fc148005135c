"""SIGTERM and SLURM's preemption: a real process gets a real signal, saves, ends, and the same command goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.kill import killed_after
from tests.reliability.toy_run import differences, outcome, start, warm_up, write_config, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("signals")
    write_inputs(root)
    warm_up()
    return root


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """The uninterrupted run."""
    killed_after(write_config(folder, folder / "whole", epochs=2), 300)
    return outcome(folder / "whole")


def signalled(config: Path, run: Path, number: int, file: str, slurm: dict[str, str] | None = None) -> int:
    """Send a signal once the run has written the evaluation ``file``; returns the exit code."""
    process = start(config, environment=slurm)
    while not list(run.glob(f"evaluations/{file}")) and process.is_alive():
        time.sleep(0.01)
    assert process.is_alive(), config.with_suffix(".log").read_text()
    os.kill(process.pid, number)
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize(
    "file", ["user_data*step=00000.json", "user_data*step=00002.json", "user_data_epoch=001_step=00003.json"]
)
def test_sigterm_saves_and_the_same_command_goes_on(folder: Path, whole: dict[str, Any], file: str) -> None:
    run = folder / f"terminated-{file[-10:-5]}"
    config = write_config(folder, run, epochs=2)
    assert signalled(config, run, signal.SIGTERM, file) == 128 + signal.SIGTERM
    said = config.with_suffix(".log").read_text()
    assert "Traceback" not in said
    assert "SIGTERM: the run is saved at step" in said
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert not (run / "checkpoints" / "finished").exists()
    killed_after(config, 300)
    assert "Resuming from" in config.with_suffix(".log").read_text()
    assert differences(outcome(run), whole) == []


SLURM = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "unlearn", "SLURM_JOB_ID": "4711", "SLURM_PROCID": "0",
         "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "node1"}  # fmt: skip


@pytest.mark.parametrize("works", [True, False])
def test_slurm_preemption_saves_queues_again_and_goes_on(
    folder: Path, whole: dict[str, Any], tmp_path: Path, works: bool
) -> None:
    run, tool = folder / f"preempted-{works}", tmp_path / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit {0 if works else 1}\n')
    tool.chmod(0o755)
    config = write_config(folder, run, epochs=2)
    slurm = SLURM | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert signalled(config, run, signal.SIGUSR1, "user_data*step=00002.json", slurm) == 128 + signal.SIGTERM
    said = config.with_suffix(".log").read_text()
    assert "Traceback" not in said
    assert "preemption: the run is saved at step" in said
    assert ("is queued again" if works else "was not queued again") in said
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert not list(run.rglob("hpc_ckpt*")), "Lightning's own file, written in the middle of a step"
    process = start(config, environment=slurm)
    process.join(300)
    assert process.exitcode == 0
    assert differences(outcome(run), whole) == []
