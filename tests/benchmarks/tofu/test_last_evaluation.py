"""A run's folder stands for its last evaluation."""

import os
from pathlib import Path

import pytest

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import last_evaluation, read_log


def test_the_folder_of_a_run_stands_for_its_last_evaluation(tmp_path: Path) -> None:
    for number, name in enumerate(("version_0/evaluations/a.json", "version_1/evaluations/b.json")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, ns=(number, number))
    assert last_evaluation(tmp_path).name == "b.json"
    with pytest.raises(InputError, match=r"b\.json"):
        read_log(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no evaluation log in this folder"):
        read_log(tmp_path / "empty")
