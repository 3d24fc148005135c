"""A project of somebody else's, as the README invites: 20 lines that subclass DiPOModule, named in YAML."""

import math
import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from dipo_lightning import UnlearningDataModule
from tests.helpers.small_tofu import trainer, write_tofu
from tests.helpers.toys import save_toy

ROOT = Path(__file__).resolve().parents[1]
METHOD = """
from dipo_lightning import DiPOModule, UnlearningDataModule


class FadingDiPO(DiPOModule):
    \"\"\"DiPO whose forget term fades while the run goes on, for rows that are sure to be known.\"\"\"

    def __init__(self, pretrained: str, fade: float = 0.5, **options):
        super().__init__(pretrained, **options)
        self.fade = fade

    def forget_loss(self, forget):
        loss = super().forget_loss(forget)
        self.log("train/fade", self.fade**self.trainer.current_epoch)
        return loss * self.fade**self.trainer.current_epoch


class EvenRows(UnlearningDataModule):
    def setup(self, stage):
        super().setup(stage)
        print("rows to forget:", len(self.forget_rows))
"""
CONFIG = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [{"class_path": "ExportModel"}],
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "logs", "name": ""}},
    },
    "model": {
        "class_path": "my_project.FadingDiPO",
        "init_args": {"pretrained": "model", "fade": 0.25, "pair": {"k": 3}},
    },
    "data": {
        "class_path": "my_project.EvenRows",
        "init_args": {
            "forget": "data/forget10.json",
            "retain": "data/retain90.json",
            "prompt": "plain",
            "batch_size": 2,
        },
    },
}


def test_a_project_of_twenty_lines(tmp_path: Path) -> None:
    assert len([line for line in METHOD.splitlines() if line.strip()]) <= 20
    save_toy(tmp_path / "model")
    write_tofu(tmp_path / "data")
    (tmp_path / "my_project.py").write_text(METHOD, encoding="utf-8")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from dipo_lightning.cli.main import main; sys.exit(main())",
            "fit",
            "--config",
            "run.yaml",
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "rows to forget: " in run.stdout
    lines = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/fade")
    faded = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert {faded[0], faded[-1]} == {1.0, 0.25}
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "logs/version_0/model"))
    assert any((before[name] != after[name]).any() for name in before)


def test_the_method_in_the_readme(tmp_path: Path) -> None:
    snippet = re.search(r"```python\n(.*?class MyMethod.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippet is not None
    names: dict = {}
    exec(snippet[1], names)
    model, data = save_toy(tmp_path / "model"), write_tofu(tmp_path / "data")
    module = names["MyMethod"](str(model), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    pairs = UnlearningDataModule(
        str(model), str(data / "forget10.json"), str(data / "retain90.json"), prompt="plain", batch_size=2
    )
    run = trainer(tmp_path, max_steps=3)
    run.fit(module, pairs)
    assert module.frozen_reference is None
    assert math.isfinite(run.callback_metrics["train/forget"])
