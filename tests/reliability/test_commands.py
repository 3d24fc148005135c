"""Commands that start runs, told to stop or killed: no run is left behind, and the same command ends up the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.cli.test_child import gone, wait_for
from tests.helpers.small_tofu import write_tofu
from tests.helpers.toys import save_toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's end"),
]


def write_comparison(folder: Path) -> list[str]:
    """Write a comparison of two methods on a toy; returns the command."""
    evaluation = {"measuring": {"max_new_tokens": 4, "generate": False}}
    base = fit_config("TOFUEvaluation", evaluation, "DiPOModule", {"beta": 0.05, "reference_cache": "cache"})
    data = {"data": str(write_tofu(folder / "data")), "prompt": "plain", "batch_size": 3}
    base["data"] = {"class_path": "dipo_lightning.TOFUDataModule", "init_args": data}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    methods = [{"name": "DiPO"}, {"name": "NPO", "class_path": "dipo_lightning.NPOModule"}]
    comparison = {"base": "base.yaml", "output": "out", "methods": methods}
    (folder / "comparison.yaml").write_text(yaml.safe_dump(comparison))
    return ["compare", "comparison.yaml"]


def write_sequence(kind: str) -> Callable[[Path], list[str]]:
    """Return what writes the config of two steps of a sequence, and returns the command."""

    def write(folder: Path) -> list[str]:
        write_fictitious_news(folder / "news", articles=5)
        evaluation = {"baseline": 0.5, "max_rows": 2, "verbmem_tokens": 4, "knowmem_tokens": 4}
        optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
        run = fit_config("MUSEEvaluation", evaluation, "GradDiffModule", {"optimizer": optimizer})
        run["trainer"]["limit_train_batches"] = 3
        data = {"data": "news", "max_length": 64, "batch_size": 1}
        run["data"] = {"class_path": "dipo_lightning.MUSEDataModule", "init_args": data}
        (folder / "fit.yaml").write_text(yaml.safe_dump(run))
        part = "sust" if kind == "sustainability" else "scal"
        return [kind, "--run=fit.yaml", "--output=out", f"--parts=[{part}/forget_1, {part}/forget_2]"]

    return write


def fit_config(evaluation: str, measured: dict[str, Any], method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The config of a run of twelve epochs, each with an evaluation and a checkpoint."""
    callbacks = [{"class_path": f"dipo_lightning.{evaluation}", "init_args": measured}]
    bars = {"enable_progress_bar": False, "enable_model_summary": False}
    return {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 12, "callbacks": callbacks, **bars},
        "model": {"class_path": f"dipo_lightning.{method}", "init_args": {"pretrained": "toy", **options}},
    }


COMMANDS = {
    "compare": (write_comparison, "comparison.csv"),
    "sustainability": (write_sequence("sustainability"), "results.csv"),
    "scalability": (write_sequence("scalability"), "results.csv"),
}
"""What writes the inputs and gives the arguments, and the table that the command ends with."""


def started(folder: Path, arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "HF_HUB_OFFLINE": "1"}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dipo_lightning", *arguments], cwd=folder, env=environment, stdout=log, stderr=log
        )


def table(folder: Path, arguments: list[str], name: str) -> str:
    """Let a command come to its end; returns its table."""
    assert started(folder, arguments).wait(280) == 0, (folder / "log.txt").read_text()[-2000:]
    return (folder / "out" / name).read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the table of a command that nothing disturbs, made once."""
    known: dict[str, str] = {}

    def make(command: str) -> str:
        if command not in known:
            folder = tmp_path_factory.mktemp(command)
            known[command] = table(folder, prepared(folder, command), COMMANDS[command][1])
        return known[command]

    return make


def prepared(folder: Path, command: str) -> list[str]:
    save_toy(folder / "toy", max_position_embeddings=2048)
    return COMMANDS[command][0](folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_stopped_leaves_no_run_behind_and_goes_on(
    command: str, number: signal.Signals, tmp_path: Path, undisturbed: Callable[[str], str]
) -> None:
    arguments = prepared(tmp_path, command)
    process = started(tmp_path, arguments)
    wait_for(lambda: list(tmp_path.glob("out/**/*epoch=002*.json")) or process.poll() is not None, 120)
    assert process.poll() is None, (tmp_path / "log.txt").read_text()[-2000:]
    [run] = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    process.send_signal(number)
    assert process.wait(60) == (128 + number if number == signal.SIGTERM else -number)
    wait_for(lambda: gone(run), 0.5 if number == signal.SIGTERM else 30)
    assert not list(tmp_path.glob("out/**/finished"))
    assert table(tmp_path, arguments, COMMANDS[command][1]) == undisturbed(command)
    assert "Resuming from" in "".join(path.read_text() for path in tmp_path.rglob("log.txt"))
