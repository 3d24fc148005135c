"""A public class is known to ``fit`` by its bare name, whether or not something has loaded it before."""

import subprocess
import sys

import yaml


def test_module_and_data_module_by_their_bare_names(tmp_path):
    named = ["--model=NPOModule", "--model.pretrained=model", "--data=TOFUDataModule", "--print_config"]
    command = [sys.executable, "-m", "dipo_lightning", "fit", *named]  # in a process where nothing else has loaded them
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["model"]["class_path"].endswith("NPOModule")
    assert config["data"]["class_path"].endswith("TOFUDataModule")
