"""A run that is killed and started again ends as if nothing had been; the long form is ``kill.py --trials 20``."""

import signal
import time
from pathlib import Path

import pytest

from tests.reliability.kill import killed_after, trials
from tests.reliability.toy_run import differences, outcome, start, warm_up, write_config, write_inputs


def test_runs_that_were_killed_end_as_the_uninterrupted_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trials(tmp_path, 3, kills=2, seed=5, epochs=2, combinations=((2, True), (0, True))) == 3
    assert capsys.readouterr().out.endswith("3 of 3 identical\n")


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    warm_up()
    config = write_config(tmp_path, tmp_path / "run", epochs=3)
    process = start(config)
    while not list(tmp_path.glob("run/evaluations/*step=00003.json")) and process.is_alive():
        time.sleep(0.02)
    process.terminate()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert "Traceback" not in config.with_suffix(".log").read_text()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "run" / "checkpoints" / "finished").exists()
    killed_after(config, 300)
    whole = write_config(tmp_path, tmp_path / "whole", epochs=3)
    killed_after(whole, 300)
    assert differences(outcome(tmp_path / "run"), outcome(tmp_path / "whole")) == []
