"""Folder of a quickstart: an earlier run is moved aside, and anything else stays where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipo_lightning.errors import InputError
from dipo_lightning.quickstart import _make_folder, quickstart


def test_an_earlier_quickstart_is_moved_aside(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "run" / "models" / "untrained").mkdir(parents=True)
        _make_folder(tmp_path / "run")
        assert not list((tmp_path / "run").iterdir())
        assert (tmp_path / f"run-earlier{number}" / "models" / "untrained").is_dir()


@pytest.mark.parametrize("output", ["docs", "."])
def test_a_folder_of_other_files_is_refused_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / output).mkdir(exist_ok=True)
    (tmp_path / output / "thesis.txt").write_text("x", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not of a quickstart"):
        quickstart(output=output)
    assert [path.name for path in (tmp_path / output).iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _make_folder(Path())
    assert not list(tmp_path.iterdir())
    assert not tmp_path.with_name(f"{tmp_path.name}-earlier1").exists()
