"""The same training and seed twice on two processes: the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.pool import WORLD, Pool
from tests.helpers.small_tofu import write_tofu


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_twice_on_two_processes_gives_the_same_weights_and_results(
    pool: Pool, task: str, tmp_path: Path, strategy: str
) -> None:
    tofu = str(write_tofu(tmp_path / "tofu"))
    options: dict[str, Any] = {
        "devices": WORLD,
        "strategy": strategy,
        "lora": {"rank": 2, "dropout": 0.3},
        "max_steps": 2,
    }
    first, again = (pool.run("train", task=task, evaluate=("tofu", tofu), **options) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one["losses"] == other["losses"]
        assert one["terms"] == other["terms"]
        assert one["documents"], "something was measured"
        assert one["documents"] == other["documents"]
    weights = first[0]["weights"]
    assert all((weights[name] == again[0]["weights"][name]).all() for name in weights)
    assert first[0]["documents"] == first[1]["documents"], "both processes hold the same results"
