"""A public class is known to ``fit`` by its bare name, whether or not something has loaded it before."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dipo_lightning.cli.main import main


def test_module_and_data_module_by_their_bare_names(tmp_path):
    named = ["--model=NPOModule", "--model.pretrained=model", "--data=TOFUDataModule", "--print_config"]
    command = [sys.executable, "-m", "dipo_lightning", "fit", *named]  # in a process where nothing else has loaded them
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["model"]["class_path"].endswith("NPOModule")
    assert config["data"]["class_path"].endswith("TOFUDataModule")


@pytest.mark.parametrize(
    ("options", "beta"),
    [
        (["--model.beta=7", "--model", "NPOModule"], 7),
        (["--model.beta=7", "--config", "npo.yaml"], 3),  # a later option overrides an earlier one
        (["--config=npo.yaml", "--model.beta=7", "--model=NPOModule"], 7),
        (["--model.lambda_=2", "--model.class_path=NPOModule", "--model.beta=7"], 7),
    ],
    ids=["option", "config", "both", "class_path"],
)
def test_the_class_may_be_named_after_its_options(
    options: list[str], beta: float, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "npo.yaml").write_text("model: {class_path: NPOModule, init_args: {beta: 3}}")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--model.pretrained=model", *options, "--data.forget=rows.jsonl", "--print_config"])
    said = capsys.readouterr()
    assert stopped.value.code == 0, said.err
    model = yaml.safe_load(said.out)["model"]
    assert model["class_path"] == "dipo_lightning.NPOModule"
    assert (model["init_args"]["pretrained"], model["init_args"]["beta"]) == ("model", beta)
