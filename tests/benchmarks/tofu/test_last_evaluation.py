"""A run's folder stands for its last evaluation."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dipo_lightning.benchmarks.tofu.metrics import TOFU
from dipo_lightning.benchmarks.user_data.metrics import UserData
from dipo_lightning.cli.attack import run_settings
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import last_evaluation, read_log
from dipo_lightning.report.runs import read_documents


def test_the_folder_of_a_run_stands_for_its_last_evaluation(tmp_path: Path) -> None:
    names = ("run/evaluations/a.json", "run/evaluations/b.json", "results.json", "run/made.json")
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, ns=(number, number))
    for folder in (tmp_path, tmp_path / "run", tmp_path / "run/evaluations"):
        assert last_evaluation(folder).name == "b.json"
    with pytest.raises(InputError, match=r"b\.json"):
        read_log(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no evaluation log in this folder"):
        read_log(tmp_path / "empty")


def test_a_folder_of_several_runs_stands_for_none(tmp_path: Path) -> None:
    for version in ("version_0", "version_1"):
        (tmp_path / version).mkdir()
        write(tmp_path / version, "tofu_epoch=002_step=00004", 1)
    with pytest.raises(InputError, match=r"holds 2 runs; give one of them: .*version_0, .*version_1"):
        read_log(tmp_path)


def write(folder: Path, name: str, number: int, form: str = TOFU.format) -> None:
    """Write an evaluation that is as old as its number is small."""
    path = folder / "evaluations" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    document = {"format": form, "sets": {}, "aggregates": {}, "provenance": {"step": 0, "number": number}}
    path.write_text(json.dumps(document, indent=1))
    os.utime(path, ns=(number, number))


def test_what_test_measured_later_is_not_the_run_s(tmp_path: Path) -> None:
    """``test`` with another model writes into the run's folder, too."""
    write(tmp_path, "tofu_epoch=002_step=00004", 1)
    write(tmp_path, "tofu_epoch=000_step=00000_test", 2)
    write(tmp_path, "tofu_epoch=000_step=00000_validate_2", 3)
    write(tmp_path, "attacks_epoch=000_step=00000_test", 0)  # of another name: all there is
    assert last_evaluation(tmp_path).name == "tofu_epoch=002_step=00004.json"
    found = read_documents(tmp_path)
    assert {name: [one["provenance"]["number"] for one in some] for name, some in found.items()} == {
        "tofu": [1],
        "attacks": [0],
    }


def test_a_model_that_was_tested_only_has_that_evaluation(tmp_path: Path) -> None:
    write(tmp_path, "tofu_epoch=000_step=00000_test", 1)
    assert last_evaluation(tmp_path).name == "tofu_epoch=000_step=00000_test.json"
    assert len(read_documents(tmp_path)["tofu"]) == 1


def test_the_tenth_evaluation_at_a_step_comes_after_the_second(tmp_path: Path) -> None:
    names = ["", *(f"_{number}" for number in range(2, 12))]
    for number, name in enumerate(names):
        write(tmp_path, f"tofu_epoch=002_step=00004_test{name}", number)
    assert [one["provenance"]["number"] for one in read_documents(tmp_path)["tofu"]] == list(range(11))


def test_of_one_name_the_last_step_counts_whatever_the_age_of_its_file(tmp_path: Path) -> None:
    for number, step in enumerate((1000, 200, 30)):  # as a copy may leave them
        write(tmp_path, f"tofu_epoch={step // 10:03d}_step={step:05d}", number)
    assert last_evaluation(tmp_path).name == "tofu_epoch=100_step=01000.json"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "config.yaml").write_text("{}")
    assert run_settings(tmp_path)["provenance"]["number"] == 0


def test_of_a_run_with_two_evaluations_that_of_the_benchmark_is_read(tmp_path: Path) -> None:
    write(tmp_path, "tofu_epoch=002_step=00004", 1)
    write(tmp_path, "memorization_epoch=002_step=00004", 2, UserData.format)
    assert last_evaluation(tmp_path, TOFU()).name == "tofu_epoch=002_step=00004.json"
    assert last_evaluation(tmp_path, UserData()).name == "memorization_epoch=002_step=00004.json"
    assert last_evaluation(tmp_path).name == "memorization_epoch=002_step=00004.json"


@pytest.mark.parametrize("change", [{"provenance": None}, {"sets": []}, {"provenance": {"step": None}}])
def test_a_damaged_evaluation_is_refused_by_its_name(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, "tofu_epoch=002_step=00004", 1)
    path = tmp_path / "evaluations/tofu_epoch=002_step=00004.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=r"tofu_epoch=002_step=00004\.json"):
        read_documents(tmp_path)
