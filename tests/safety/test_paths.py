"""Places that a user names are the same wherever they are read."""

import re
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path

import pytest

import dipo_lightning
from dipo_lightning.cli.attack import attack
from dipo_lightning.cli.export import export
from dipo_lightning.cli.forget import forget
from dipo_lightning.cli.lm_eval import lm_eval
from dipo_lightning.cli.main import spelled_out
from dipo_lightning.comparison import compare
from dipo_lightning.comparison.plan import read_comparison
from dipo_lightning.comparison.sequences import scalability, sustainability
from dipo_lightning.data.rows import read_rows
from dipo_lightning.errors import InputError
from dipo_lightning.models.checkpoint import read_checkpoint
from dipo_lightning.quickstart import quickstart
from dipo_lightning.quickstart.muse_small import muse_small
from dipo_lightning.report.page import report
from dipo_lightning.report.runs import read_run
from dipo_lightning.safety.paths import expanded, refuse_model_folder, with_home


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


def test_the_folder_of_a_model_is_no_place_for_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    refuse_model_folder(tmp_path / "model", "run")
    (tmp_path / "model/model.safetensors").write_text("")
    monkeypatch.chdir(tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path / "model/a/b", Path("out")):
        with pytest.raises(InputError, match=r"run is .*, but .*/model is the folder of a model"):
            refuse_model_folder(folder, "run")
    refuse_model_folder(tmp_path / "other", "run")


def test_a_name_after_the_tilde_that_is_no_users_stays(home: Path) -> None:
    assert with_home("~backup.jsonl") == Path("~backup.jsonl")
    assert with_home(Path("~nosuch/x")) == expanded("~nosuch/x", "run") == Path("~nosuch/x")
    assert with_home("~/x") == home / "x"


def test_a_file_called_so_is_read_and_an_absent_one_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    Path("~backup.jsonl").write_text('{"question": "Who?", "answer": "Ann."}')
    assert read_rows("~backup.jsonl")[0]["answer"] == "Ann."
    for read in (read_rows, read_run, read_checkpoint):
        with pytest.raises(InputError, match=r"~nosuch/x"):
            read("~nosuch/x.jsonl")


def test_every_path_is_expanded_by_the_same_function() -> None:
    package = Path(dipo_lightning.__file__).parent
    bare = [path.name for path in package.rglob("*.py") if re.search(r"\.expanduser\(", path.read_text("utf-8"))]
    assert bare == ["paths.py"], "take with_home or expanded of dipo_lightning.safety.paths"


WRITERS = [attack, export, forget, lm_eval, report, scalability, sustainability, quickstart, muse_small]


@pytest.mark.parametrize("write", WRITERS)
def test_where_a_config_file_says_to_write_is_filled_in(write: Callable[..., None], home: Path) -> None:
    given = [name for name, one in signature(write).parameters.items() if one.default is Parameter.empty]
    with pytest.raises(InputError, match=r"output is \$NOWHERE/x, which names a variable that is not set"):
        write(**dict.fromkeys(given, "absent"), output="$NOWHERE/x")
