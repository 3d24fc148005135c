"""Checkpoints and exports: nothing of the reference in them, and any number of processes goes on from any other's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from tests.distributed import jobs
from tests.distributed.pool import WORLD, Pool
from tests.distributed.test_equality import assert_same_weights

STEPS, SAVED = 7, 3  # four optimiser steps an epoch: the checkpoint is in the middle of one, and the end of the next
RUN: dict[str, Any] = {"method": "dipo", "reference": "live", "clip": 1.0, "epochs": 2, "max_steps": STEPS}
GLOBAL_BATCH = 4
CHECKPOINT = f"step={SAVED}.ckpt"


@pytest.fixture(scope="module", params=["full", "lora"])
def whole_run(request: pytest.FixtureRequest, task: str) -> dict[str, Any]:
    """One process, uninterrupted; ``folder`` holds what is saved of runs like it, ``options`` makes them so."""
    options = {"lora": {"rank": 4}} if request.param == "lora" else {}
    folder = f"{task}/{request.param}"
    found = jobs.train(task, batch_size=GLOBAL_BATCH, save=(f"{folder}/one", SAVED), **RUN, **options)
    return found | {"path": f"{folder}/one/{CHECKPOINT}", "folder": folder, "options": options}


def on_two(pool: Pool, task: str, strategy: str, **options: Any) -> list[dict[str, Any]]:
    """Train on two processes; a run that resumes has the checkpoint callback that Lightning asks for."""
    folder = {"save": (str(Path(options["ckpt_path"]).parent), SAVED)} if "ckpt_path" in options else {}
    arguments = RUN | {"devices": WORLD, "batch_size": GLOBAL_BATCH // WORLD, "strategy": strategy} | folder | options
    return pool.run("train", task=task, **arguments)


def on_one(alone: Pool, task: str, **options: Any) -> list[dict[str, Any]]:
    """Train on one process that shards over itself."""
    return alone.run("train", task=task, batch_size=GLOBAL_BATCH, strategy="fsdp2", **RUN, **options)


def rows_of_steps(ranks: list[dict[str, Any]]) -> list[list[int]]:
    return [sorted(sum(parts, [])) for parts in zip(*(rank["rows"] for rank in ranks), strict=True)]


def assert_goes_on(whole: dict[str, Any], resumed: list[dict[str, Any]]) -> None:
    """The resumed run had the rows that were left, in order, and ends where the uninterrupted one does."""
    assert rows_of_steps(resumed) == rows_of_steps([whole])[SAVED:]
    assert_same_weights(resumed[0]["weights"], whole["weights"], 2e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_file_of_two_processes_holds_the_policy_only_and_goes_on_on_one(
    pool: Pool, task: str, whole_run: dict[str, Any], strategy: str
) -> None:
    folder, options = f"{whole_run['folder']}/{strategy}", whole_run["options"]
    on_two(pool, task, strategy, save=(folder, SAVED), **options)
    path = f"{folder}/{CHECKPOINT}"
    saved = torch.load(path, weights_only=True)
    assert set(saved["state_dict"]) == {f"policy.{name}" for name in whole_run["weights"]}
    arguments = {"ckpt_path": path, "save": (folder, SAVED), **RUN, **options}
    assert_goes_on(whole_run, [jobs.train(task, batch_size=GLOBAL_BATCH, **arguments)])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_process_goes_on_on_two(pool: Pool, task: str, whole_run: dict[str, Any], strategy: str) -> None:
    resumed = on_two(pool, task, strategy, ckpt_path=whole_run["path"], **whole_run["options"])
    assert_goes_on(whole_run, resumed)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose first parameter is its output projection too."""
    return str(jobs.write_task(tmp_path_factory.mktemp("tied"), "qwen2"))


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4}}, {"freeze_projection": True}], ids=str)
def test_one_file_of_two_that_share_goes_on_on_two(
    pool: Pool, tied: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Frozen parameters stand before trained ones: a number in the optimiser is none in the model."""
    whole = on_two(pool, tied, "fsdp2", save=(str(tmp_path), SAVED), **options)
    resumed = on_two(pool, tied, "fsdp2", ckpt_path=str(tmp_path / CHECKPOINT), **options)
    assert rows_of_steps(resumed) == rows_of_steps(whole)[SAVED:]
    assert_same_weights(resumed[0]["weights"], whole[0]["weights"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_package_s_own_checkpoint_goes_on_in_its_folder_and_is_not_replaced(
    pool: Pool, task: str, tmp_path: Path, strategy: str
) -> None:
    """A sharded run restores its checkpoint later than others do."""
    options = {"keep": str(tmp_path), "strategy": strategy}
    begun = on_two(pool, task, max_steps=SAVED, **options)
    with pytest.raises(Exception, match="has the checkpoint of an earlier run"):
        on_two(pool, task, **options)
    resumed = on_two(pool, task, ckpt_path=str(tmp_path / "last.ckpt"), save=None, **options)
    whole = on_two(pool, task, keep=str(tmp_path / "whole"), strategy=strategy)
    assert rows_of_steps(begun) + rows_of_steps(resumed) == rows_of_steps(whole)
    assert_same_weights(resumed[0]["weights"], whole[0]["weights"])


def test_an_optimizer_without_a_state_goes_on_on_two(pool: Pool, task: str) -> None:
    options = {**RUN, "optimizer": "plain_sgd"}
    whole = jobs.train(task, batch_size=GLOBAL_BATCH, save=(f"{task}/plain", SAVED), **options)
    resumed = on_two(pool, task, "fsdp2", ckpt_path=f"{task}/plain/{CHECKPOINT}", optimizer="plain_sgd")
    assert_goes_on(whole, resumed)


def test_shards_hold_the_policy_only_and_go_on_on_two_and_on_one(
    pool: Pool, alone: Pool, task: str, whole_run: dict[str, Any]
) -> None:
    folder, options = f"{whole_run['folder']}/shards", whole_run["options"]
    on_two(pool, task, "fsdp2", save=(folder, SAVED), sharded_checkpoint=True, **options)
    path = Path(folder) / CHECKPOINT
    keys = FileSystemReader(path).read_metadata().state_dict_metadata
    weights = {key for key in keys if not key.startswith("optimizer")}
    assert weights == {f"state_dict.policy.{name}" for name in whole_run["weights"]}
    assert_goes_on(whole_run, on_two(pool, task, "fsdp2", ckpt_path=str(path), **options))
    assert_goes_on(whole_run, on_one(alone, task, ckpt_path=str(path), save=(folder, SAVED), **options))


def test_shards_of_one_process_go_on_on_two(pool: Pool, alone: Pool, task: str, whole_run: dict[str, Any]) -> None:
    folder, options = f"{whole_run['folder']}/one_shard", whole_run["options"]
    on_one(alone, task, save=(folder, SAVED), sharded_checkpoint=True, **options)
    assert (Path(folder) / CHECKPOINT / ".metadata").is_file()
    assert_goes_on(whole_run, on_two(pool, task, "fsdp2", ckpt_path=f"{folder}/{CHECKPOINT}", **options))


def test_resuming_in_an_accumulated_epoch(pool: Pool, task: str) -> None:
    options = {"accumulate": 2, "max_steps": 4, "epochs": 2}  # two optimiser steps an epoch
    whole = on_two(pool, task, "fsdp2", save=(f"{task}/accumulated", 3), **options)
    resumed = on_two(pool, task, "fsdp2", ckpt_path=f"{task}/accumulated/step=3.ckpt", **options)
    assert rows_of_steps(resumed) == rows_of_steps(whole)[6:]
    assert_same_weights(resumed[0]["weights"], whole[0]["weights"])


@pytest.mark.parametrize("adapters", [None, "merged", "separate"])
def test_a_sharded_policy_exports_what_an_unsharded_one_does(pool: Pool, tmp_path: Path, adapters: str | None) -> None:
    options = {"lora": {"rank": 4}, "reference": "adapters_off"} if adapters else {}
    kind = adapters or "merged"
    task = str(jobs.write_task(tmp_path / "task", rms_norm_eps=3e-6))
    defaults = Path(task) / "model" / "generation_config.json"
    defaults.write_text(json.dumps({**json.loads(defaults.read_text()), "do_sample": True, "temperature": 0.3}))
    jobs.train(task, batch_size=GLOBAL_BATCH, export=(f"{tmp_path}/one", kind), **RUN | options)
    on_two(pool, task, "fsdp2", export=(f"{tmp_path}/two", kind), **options)
    files = {name: sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")}
    assert files["one"] == files["two"]
    for name in {"config.json", "generation_config.json"} & set(files["one"]):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert ("adapter_config.json" in files["one"]) == (adapters == "separate")
    assert_same_weights(load(tmp_path / "two"), load(tmp_path / "one"), 2e-6)
    trained, start = load(tmp_path / "two"), jobs.pretrained_weights(task)
    assert any(np.abs(trained[name] - start[name]).max() > 1e-3 for name in start.keys() & trained.keys())


def load(folder: Path) -> dict[str, np.ndarray]:
    """The weights as transformers loads them, adapters merged in by peft where they are separate."""
    if (folder / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: value.numpy() for name, value in model.state_dict().items()}
