"""WMDP's configurations as they are shipped, to their end, on a toy model: only the model and the hub are stood in for.

The rows have the layout of the real ones: `cais/wmdp-corpora` (and the gated `cais/wmdp-bio-forget-corpus`) for
training; `cais/wmdp` and `cais/mmlu`, for the harness's own tasks, where it is installed.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from dipo_lightning.cli.configs import shipped_folder
from dipo_lightning.cli.main import main
from tests.helpers.cached_hub import cached_dataset, only_cached
from tests.helpers.toys import save_toy

HARNESS = importlib.util.find_spec("lm_eval") is not None
STEERED = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (5, 6, 7)]
STEPS = 2


def texts(kind: str, topic: str) -> list[dict]:
    """Documents longer than a piece of 768 tokens, a short and an empty one; biology's papers have more columns."""
    rows = [{"text": f"The {kind} text {i} of {topic}. " + f"It says {i}, {topic} and more. " * 60} for i in range(3)]
    if (kind, topic) == ("forget", "bio"):
        rows = [{"title": f"On {i}", "abstract": None, **row, "doi": f"10.1/{i}"} for i, row in enumerate(rows)]
    return [*rows, {**rows[0], "text": f"A short {kind} text."}, {**rows[0], "text": " "}]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("hub")
    for kind in ("forget", "retain"):
        cached_dataset(home, "cais/wmdp-corpora", f"cyber-{kind}-corpus", texts(kind, "cyber"))
    cached_dataset(home, "cais/wmdp-corpora", "bio-retain-corpus", texts("retain", "bio"))
    cached_dataset(home, "cais/wmdp-bio-forget-corpus", "default", texts("forget", "bio"))
    question = {"question": "What is it?", "choices": ["a", "b", "c", "d"], "answer": 2}
    for topic in ("bio", "cyber"):
        cached_dataset(home, "cais/wmdp", f"wmdp-{topic}", [question], ("test",))
    for subject in subjects():
        cached_dataset(home, "cais/mmlu", subject, [question], ("test", "dev"))
    save_toy(home / "model", num_hidden_layers=8, max_position_embeddings=1024)
    return home


def subjects() -> list[str]:
    """The parts of MMLU that the harness asks; none where it is not installed."""
    if not HARNESS:
        return []
    found = importlib.util.find_spec("lm_eval")
    folder = Path(found.submodule_search_locations[0]) / "tasks/mmlu/default"
    configurations = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("mmlu_*.yaml"))]
    return [one["dataset_name"] for one in configurations]


@pytest.mark.filterwarnings("ignore:1 of 5 rows left out:UserWarning")
@pytest.mark.parametrize("topic", ["cyber", "bio"])
@pytest.mark.parametrize("method", ["rmu", "dipo"])
def test_the_configuration_runs_to_its_end(method, topic, home, tmp_path, monkeypatch):
    only_cached(monkeypatch, home)
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((shipped_folder() / f"wmdp/{method}.yaml").read_text())
    callbacks = config["trainer"]["callbacks"]
    if not HARNESS:
        config["trainer"]["callbacks"] = [one for one in callbacks if "LMEval" not in one["class_path"]]
    elif topic == "bio":
        callbacks[0]["init_args"]["tasks"] = ["wmdp_bio"]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    command = ["fit", "--config", "config.yaml", "--config", "trainer/cpu", "--run", "run"]
    command += [f"--trainer.max_steps={STEPS}", f"--model.pretrained={home / 'model'}"]
    if topic == "bio":
        command += ["--data.forget=cais/wmdp-bio-forget-corpus", "--data.retain=cais/wmdp-corpora:bio-retain-corpus"]
    assert main(command) == 0
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (home / "model", "run/model"))
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    changed = [name for name, weight in new.items() if not torch.equal(weight, old[name])]
    assert changed == STEERED if method == "rmu" else len(changed) == len(new)
    if HARNESS:
        first, last = sorted(Path("run/evaluations").glob("lm_eval_*.json"))
        assert json.loads(last.read_text())["provenance"]["step"] == STEPS
        names = {"wmdp_bio_acc"} if topic == "bio" else {"wmdp_cyber_acc", "mmlu_acc"}
        for path in (first, last):
            assert set(json.loads(path.read_text())["aggregates"]) == names
