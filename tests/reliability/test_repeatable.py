"""The same command and seed give the same weights and results; a results file says where its numbers come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dipo_lightning.cli.score import score
from dipo_lightning.models.fingerprint import model_fingerprint
from tests.helpers.toys import toy_model
from tests.reliability.toy_run import differences, outcome, run_here, write_config, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repeatable")
    write_inputs(root, rows=4)
    for name, options in {"first": {}, "again": {}, "other": {"seed": 2}}.items():
        run_here(write_config(root, root / name, epochs=1, lora=True, **options))
    return root


def results(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "evaluations").glob("*.json"))]


def test_twice_gives_the_same_weights_and_results(folder: Path) -> None:
    first = outcome(folder / "first")
    assert differences(first, outcome(folder / "again")) == []
    assert first["evaluations"], "something was compared"
    assert "weights" in differences(first, outcome(folder / "other"))


def test_a_results_file_says_where_its_numbers_come_from(folder: Path) -> None:
    before, *_, after = [document["provenance"] for document in results(folder / "first")]
    assert {"dipo_lightning", "torch", "transformers", "lightning"} <= before["versions"].keys()
    assert (before["seed"], before["data_seed"]) == (1, 0)
    assert before["model"]["pretrained"] == after["model"]["pretrained"] == model_fingerprint(toy_model())
    assert before["model"]["trained"] != after["model"]["trained"]
    assert {half: data["rows"] for half, data in before["data"].items()} == {"forget": 4, "retain": 7}
    assert before["config"]["model"]["init_args"]["lora"]["dropout"] == 0.3
    assert before["config"]["trainer"]["accumulate_grad_batches"] == 2
    [other, *_] = results(folder / "other")
    assert other["provenance"]["config"]["seed_everything"] == 2


def trained_fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """The fingerprint of a model that trains these weights, under the names that they have in the policy."""
    model = torch.nn.Module()
    for name, value in weights.items():
        *path, last = name.split(".")
        owner = model
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(last, torch.nn.Parameter(value))
    return model_fingerprint(model, trainable_only=True)


def test_the_stated_weights_are_the_ones_that_were_saved(folder: Path) -> None:
    state = torch.load(folder / "first" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    adapters = {name.removeprefix("policy."): value for name, value in state.items() if "lora_" in name}
    assert adapters
    assert trained_fingerprint(adapters) == results(folder / "first")[-1]["provenance"]["model"]["trained"]


def test_the_config_in_a_results_file_is_the_config_of_the_run(folder: Path) -> None:
    config = results(folder / "first")[0]["provenance"]["config"]
    assert config == yaml.safe_load((folder / "first" / "config.yaml").read_text())


def test_aggregates_follow_from_the_rows_or_that_is_said(folder: Path, tmp_path: Path) -> None:
    path = sorted((folder / "first" / "evaluations").glob("*.json"))[0]
    assert score(path)["stored_aggregates_hold"] is True
    document = json.loads(path.read_text())
    document["aggregates"]["utility"] += 0.01
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(document))
    found = score(changed)
    assert found["stored_aggregates_hold"] is False
    assert found["stored_aggregates_differ"].keys() == {"utility"}
