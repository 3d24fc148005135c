"""A comparison with real runs on a toy model, a method from outside the package among them."""

import csv
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dipo_lightning.cli import child
from dipo_lightning.cli.main import main
from tests.helpers.acted import in_this_process
from tests.helpers.small_tofu import write_tofu
from tests.helpers.toys import save_toy

PROJECT = '''
from dipo_lightning import NPOModule

class Doubled(NPOModule):
    """Somebody's own method, registered nowhere."""

    def forget_loss(self, forget):
        return 2 * super().forget_loss(forget)
'''
METHODS = [
    {"name": "DiPO"},
    {"name": "Doubled", "class_path": "somebodys_methods.Doubled", "settings": {"beta": 0.5, "lr": 0.02}},
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a base, the log of a retain model, a method of their own, and a comparison."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "somebodys_methods", raising=False)
    Path("somebodys_methods.py").write_text(PROJECT)
    data = str(write_tofu(Path("data")))
    for seed in (0, 1):
        save_toy(f"model{seed}", seed=seed)
    evaluation: dict[str, Any] = {"measuring": {"max_new_tokens": 4}}
    config: dict[str, Any] = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "dipo_lightning.TOFUEvaluation", "init_args": evaluation}],
            "default_root_dir": "retain",
        },
        "model": {"class_path": "dipo_lightning.DiPOModule", "init_args": {"pretrained": "model1"}},
        "data": {
            "class_path": "dipo_lightning.TOFUDataModule",
            "init_args": {"data": data, "prompt": "plain", "batch_size": 3},
        },
    }
    Path("test.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", "--config=test.yaml"]) == 0
    evaluation["retain_log"] = str(next(Path("retain").rglob("*.json")))
    config["model"]["init_args"] = {"pretrained": "model0", "beta": 0.05, "reference_cache": "cache"}
    Path("base.yaml").write_text(yaml.safe_dump(config))
    plan = {"base": "base.yaml", "output": "out", "seeds": [0], "methods": METHODS}
    Path("comparison.yaml").write_text(yaml.safe_dump(plan))
    return tmp_path


def check(folder: Path) -> None:
    with (folder / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = [(row["method"], row["epoch"]) for row in rows if row["method"] in ("DiPO", "Doubled")]
    assert epochs == [(name, epoch) for name in ("DiPO", "Doubled") for epoch in "012"]
    assert all(math.isfinite(float(row["forget_quality_log10_p"])) for row in rows)
    first = {row["method"]: row["forget_probability"] for row in rows if row["epoch"] == "0"}
    last = {row["method"]: row["forget_probability"] for row in rows if row["epoch"] == "2"}
    assert first["DiPO"] == first["Doubled"] == first["target"]
    assert len({last["DiPO"], last["Doubled"], first["target"]}) == 3
    ran = yaml.safe_load(next((folder / "out" / "runs" / "Doubled").rglob("config.yaml")).read_text())
    assert ran["model"]["class_path"] == "somebodys_methods.Doubled"
    assert ran["model"]["init_args"]["beta"] == 0.5
    assert ran["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.02
    assert (folder / "out" / "comparison.png").is_file()


def test_a_method_from_outside_takes_part(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "start", in_this_process)
    assert main(["compare", "comparison.yaml"]) == 0
    check(project)


@pytest.mark.slow
def test_each_run_is_a_process_of_its_own(project: Path) -> None:
    assert main(["compare", "comparison.yaml"]) == 0
    check(project)
    log = next((project / "out" / "runs" / "Doubled").rglob("log.txt")).read_text()
    assert log.startswith("$ dipo-lightning fit --config ")
    assert "Results are in" in log
