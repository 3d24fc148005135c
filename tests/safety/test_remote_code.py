"""A model's own code runs where an option says so by name, and nowhere else."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dipo_lightning.cli.main import main
from dipo_lightning.models.loading import find_source, load_config
from tests.helpers.toys import save_toy
from tests.safety.scan import calls

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose code leaves a file when it runs."""
    model = save_toy(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": names}))
    code = "from transformers import PretrainedConfig\nfrom pathlib import Path\n"
    code += f"Path({str(tmp_path / 'ran')!r}).touch()\nclass MyConfig(PretrainedConfig):\n    model_type = 'mine'\n"
    (model / "mine.py").write_text(code)
    return model


def test_the_code_runs_where_it_is_allowed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    load_config(find_source(str(folder)), trust_remote_code=True)
    assert (tmp_path / "ran").exists(), "else the tests below show nothing"


def test_no_command_runs_it_unasked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(folder), str(folder)]) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_cannot_allow_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"pretrained": str(folder), "trust_remote_code": True}
    torch.save({"hyper_parameters": settings, "state_dict": {"policy.x": torch.ones(1)}}, tmp_path / "bad.ckpt")
    assert main(["export", str(tmp_path / "bad.ckpt"), "--output", str(tmp_path / "out")]) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    shutil.rmtree(folder)


def test_nothing_here_allows_it_by_itself() -> None:
    configs = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(configs) > 5
    assert not [path for path in configs if "trust_remote_code" in str(yaml.safe_load(path.read_text()))]
    allowing = [
        f"{path}:{line}"
        for path in sorted((ROOT / "dipo_lightning").rglob("*.py"))
        for line, _, keywords in calls(ast.parse(path.read_text(encoding="utf-8")))
        if keywords.get("trust_remote_code")
    ]
    assert not allowing
