"""A child gets its parent's signals, comes back with its code and words, and does not outlive its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dipo_lightning.cli import child

SLEEPER = """
import os, sys, time
from dipo_lightning.cli import PARENT
from dipo_lightning.cli.main import end_with
end_with(int(os.environ[PARENT]))
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""

PARENT = """
import os, subprocess, sys
os.environ["DIPO_LIGHTNING_PARENT"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]]).wait()
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def wait_for(condition: object, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's end")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, SLEEPER, str(note)])
    wait_for(lambda: note.exists() and note.read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: gone(int(note.read_text())))


def test_sigterm_is_passed_on_and_ends_both(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def sleep_instead(command: list[str], **options: object) -> subprocess.Popen:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", sleep_instead)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(SystemExit) as stopped:
        child.start(["fit"])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert started[0].returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_child_reads_secrets_that_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def start(arguments: list[str], *_: object) -> int:
        read.append(Path(arguments[2]).read_text())
        return 0

    monkeypatch.setattr(child, "start", start)
    for options in ({"api_key": "abc123"}, {"beta": 0.1}):
        child.fit({"model": {"init_args": options}}, tmp_path / "run")
        assert yaml.safe_load(read[-1]) == {"model": {"init_args": options}}
        assert "abc123" not in (tmp_path / "run" / "run.yaml").read_text()


def test_the_exit_code_and_the_words_of_a_process_come_back(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert child.start(["fitt"], log) == 2
    assert child.last_words(log, 2).startswith("exit code 2: there is no command 'fitt'")


def test_the_words_are_those_of_the_last_attempt(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("$ dipo-lightning fit\nerror: No space left.\n$ dipo-lightning fit\nepoch 1\n")
    assert child.last_words(log, -9) == "killed by signal 9"
    assert child.last_words(log, 1) == "exit code 1: epoch 1"
    log.write_text(log.read_text() + "error: The loss is nan.\n")
    assert child.last_words(log, 2) == "exit code 2: The loss is nan."


def test_a_run_was_begun_with_the_config_that_fit_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model": {"init_args": {"gamma": 1.0}}, "trainer": {"logger": {"init_args": {"api_key": "secret"}}}}
    assert not child.was_begun_with(config, tmp_path / "run"), "there is none"
    monkeypatch.setattr(child, "start", lambda *_: 0)
    child.fit(config, tmp_path / "run")
    assert "secret" not in (tmp_path / "run" / "run.yaml").read_text()
    assert child.was_begun_with(config, tmp_path / "run")
    assert not child.was_begun_with(config | {"model": {"init_args": {"gamma": 2.0}}}, tmp_path / "run")
    (tmp_path / "run" / "run.yaml").write_text("model: {init_args: {gam")
    assert not child.was_begun_with(config, tmp_path / "run"), "it was cut off"
