"""Places that a user names are the same wherever they are read."""

from pathlib import Path

import pytest

from dipo_lightning.cli.main import spelled_out
from dipo_lightning.comparison import compare
from dipo_lightning.comparison.plan import read_comparison
from dipo_lightning.errors import InputError
from dipo_lightning.safety.paths import expanded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOWHERE", raising=False)
    return tmp_path


def test_home_and_variables_are_filled_in(home: Path) -> None:
    assert expanded("~/a", "run") == home / "a"
    assert expanded("${SCRATCH}/a", "run") == expanded("$SCRATCH/a", "run") == home / "scratch" / "a"
    assert expanded("a/~b", "run") == Path("a/~b")
    with pytest.raises(InputError, match=r"run is \$NOWHERE/a, which names a variable that is not set"):
        expanded("$NOWHERE/a", "run")


def test_where_a_command_writes_is_filled_in(home: Path) -> None:
    found = spelled_out("compare", compare, ["c.yaml", "--output=~/a", "--output", "$SCRATCH/b", "--dry_run"])
    assert found == ["c.yaml", f"--output={home}/a", "--output", f"{home}/scratch/b", "--dry_run=true"]
    (home / "c.yaml").write_text("{base: base.yaml, output: ~/out, methods: [{name: DiPO}]}")
    assert read_comparison(home / "c.yaml").output == str(home / "out")
