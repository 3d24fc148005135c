"""A run that is killed and started again ends as if nothing had been; the long form is ``kill.py --trials 20``."""

from pathlib import Path

import pytest

from tests.reliability.kill import trials


def test_runs_that_were_killed_end_as_the_uninterrupted_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trials(tmp_path, 3, kills=2, seed=5, epochs=2, combinations=((2, True), (0, True))) == 3
    assert capsys.readouterr().out.endswith("3 of 3 identical\n")
