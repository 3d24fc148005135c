"""Every path of the DiPO step in two processes against full logits and a live reference in one."""

from __future__ import annotations

import functools
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed import jobs
from tests.distributed.pool import WORLD, Pool
from tests.methods.test_exactness import LINEAR, OTHER, PAIRS

PATHS: dict[str, dict[str, Any]] = {
    "logits": {"form": "logits", "reference": "live"},
    "chunks": {"form": "hidden", "reference": "live", "chunk_size": 7},
    "hidden_states": {"reference": "hidden_states", "chunk_size": 7},
    "directions": {"reference": "directions", "chunk_size": 7, "freeze_projection": True},
    "adapters": {"reference": "adapters_off", "form": "hidden", "chunk_size": 7, "lora": {"rank": 2}},
}
MEMORY: dict[str, Any] = {"activation_checkpointing": True}
SHARDED = MEMORY | {"cpu_offload": True}
CASES = [
    (family, path)
    for family, path in product(LINEAR + OTHER, PATHS)
    if not (family in OTHER and path in ("hidden_states", "directions"))
]


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder with a model and rows for each family."""
    return {family: str(jobs.write_task(tmp_path_factory.mktemp(family), family)) for family in LINEAR + OTHER}


@functools.cache
def plain(task: str, settings: str) -> dict[str, Any]:
    """One process, full logits, a live reference; the settings are JSON, which has a hash."""
    return jobs.train(task, batch_size=2 * WORLD, max_steps=3, form="logits", reference="live", **json.loads(settings))


@functools.cache
def start(task: str) -> dict[str, np.ndarray]:
    return jobs.pretrained_weights(task)


def compare(pool: Pool, task: str, strategy: str, path: str, pair: tuple[dict[str, Any], str], **more: Any) -> None:
    options = {"pair": pair[0] | {"memory_vector": pair[1]}, "method": "dipo"}
    chosen = PATHS[path] | options | more
    one = plain(task, json.dumps(options | {k: chosen[k] for k in KEPT if k in chosen}, sort_keys=True))
    ranks = pool.run("train", task=task, devices=WORLD, batch_size=2, max_steps=3, strategy=strategy, **chosen)
    losses = np.mean([rank["losses"] for rank in ranks], axis=0)
    np.testing.assert_allclose(losses, one["losses"], rtol=1e-5)
    for name, value in one["weights"].items():
        first = start(task).get(name.replace("base_model.model.", "").replace(".base_layer", ""), 0.0)
        moved = np.linalg.norm(value.astype(np.float64) - first)
        distance = np.linalg.norm(ranks[0]["weights"][name].astype(np.float64) - value)
        # 1e-4 of what the gradients did to it, and the rounding of the weight itself
        assert distance <= 1e-4 * moved + 2e-7 * np.linalg.norm(value), name


KEPT = ("freeze_projection", "lora")
"""What is trained, which both sides must agree on."""


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: "-".join(CASES[case]))
def test_two_processes_equal_plain(pool: Pool, tasks: dict[str, str], case: int) -> None:
    """Each path under one strategy, with one of the six ways to make the pair, and another one each time."""
    family, path = CASES[case]
    strategy = ("ddp", "fsdp2")[case % 2]
    compare(pool, tasks[family], strategy, path, PAIRS[case % len(PAIRS)])


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]['selection']}-{pair[1]}")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("family", "path"), CASES)
@pytest.mark.parametrize("memory", [False, True])
def test_two_processes_equal_plain_in_every_combination(
    pool: Pool, tasks: dict[str, str], family: str, path: str, strategy: str, pair: Any, memory: bool
) -> None:
    saving = SHARDED if strategy == "fsdp2" else MEMORY
    compare(pool, tasks[family], strategy, path, pair, **(saving if memory else {}))


@pytest.mark.parametrize("family", ["llama", *OTHER])
def test_the_policy_as_source_and_a_mean(pool: Pool, tasks: dict[str, str], family: str) -> None:
    options = {"pair": {"source": "policy"}, "reduction": "mean", "beta": 1.0}
    task, path = tasks[family], PATHS["chunks"]
    one = plain(task, json.dumps(options | {"method": "dipo"}, sort_keys=True))
    for strategy, saving in (("ddp", MEMORY), ("fsdp2", SHARDED)):
        chosen = path | options | saving | {"strategy": strategy, "method": "dipo"}
        ranks = pool.run("train", task=task, devices=WORLD, batch_size=2, max_steps=3, **chosen)
        np.testing.assert_allclose(np.mean([rank["losses"] for rank in ranks], axis=0), one["losses"], rtol=1e-5)


def test_what_is_offloaded_is_trained_after_a_cache_was_made_with_it(pool: Pool, tmp_path: Path) -> None:
    task = str(jobs.write_task(tmp_path))
    options: dict[str, Any] = {"method": "dipo", "reference": "hidden_states", "cpu_offload": True, "max_steps": 1}
    ranks = pool.run("train_where_it_lies", task=task, devices=WORLD, batch_size=2, strategy="fsdp2", **options)
    start = jobs.pretrained_weights(task)
    assert not [name for name, value in ranks[0]["weights"].items() if np.array_equal(value, start[name])]


def test_a_cache_is_of_the_dtype_that_was_computed_in(pool: Pool, tmp_path: Path) -> None:
    """The option alone does not name it: "auto" is another one on each device."""
    task = str(jobs.write_task(tmp_path))
    for caches, strategy, dtype in ((1, "fsdp2", "bfloat16"), (2, "ddp", "auto"), (2, "fsdp2", "float32")):
        options: dict[str, Any] = {"compute_dtype": dtype, "method": "npo", "reference": "hidden_states"}
        pool.run("train", task=task, devices=WORLD, batch_size=2, max_steps=1, strategy=strategy, **options)
        made = [path for path in (tmp_path / "cache" / str(WORLD)).iterdir() if path.is_dir()]
        assert len(made) == caches
