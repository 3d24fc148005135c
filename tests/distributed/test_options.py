"""Options that save memory or time and change no number: checkpointing, offloading, compiling, evaluating in a run."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.distributed import jobs
from tests.distributed.pool import WORLD, Pool
from tests.distributed.test_equality import assert_same_weights, case, compare
from tests.helpers.harness_tasks import write_tasks
from tests.helpers.small_tofu import write_tofu

OPTIONS: dict[str, dict[str, Any]] = {
    "activation_checkpointing": {"activation_checkpointing": True},
    "cpu_offload": {"cpu_offload": True},
    "compile_blocks": {"compile_blocks": True, "compiler": "aot_eager"},
    "all": {"activation_checkpointing": True, "cpu_offload": True, "compile_blocks": True, "compiler": "aot_eager"},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("lora", [False, True])
def test_an_option_changes_no_number(pool: Pool, task: str, option: str, lora: bool) -> None:
    chosen = case("fsdp2", "dipo", "adapters_off" if lora else "live", lora, 1, True)
    compare(pool, task, chosen, changes=OPTIONS[option])


@pytest.mark.parametrize("option", ["activation_checkpointing", "compile_blocks"])
def test_an_option_changes_no_number_under_ddp(pool: Pool, task: str, option: str) -> None:
    compare(pool, task, case("ddp", "npo", "live", False, 1, True), changes=OPTIONS[option])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The data of each evaluation (in most sets a number of rows that two does not divide), and what is trained on."""
    folder = tmp_path_factory.mktemp("evaluated")
    jobs.write_task(folder / "task", max_position_embeddings=2048)  # room for MUSE's ten examples in a prompt
    write_tofu(folder / "tofu")  # 3, 3, 4, 5 and 6 rows
    write_fictitious_news(folder / "muse", articles=6)  # 5 rows are taken of each set
    write_tasks(folder / "lm_eval")  # 2 and 5 documents
    return {name: str(folder / name) for name in ("task", "tofu", "muse", "user_data", "lm_eval")}


harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the lm-evaluation-harness")


@pytest.fixture(scope="module")
def trained(pool: Pool, evaluated: dict[str, str]) -> Callable[..., list[dict[str, Any]]]:
    """Trains once for each set of arguments that several tests share: on one process, or without the evaluation."""

    @functools.cache
    def train(kind: str, strategy: str | None, lora: bool, measured: bool) -> list[dict[str, Any]]:
        run: dict[str, Any] = {"method": "dipo", "clip": 1.0, "reference": "live", "max_steps": 2}
        run |= {"evaluate": (kind, evaluated[kind]), "measured": measured, **({"lora": {"rank": 4}} if lora else {})}
        if strategy is None:
            return [jobs.train(evaluated["task"], batch_size=2 * WORLD, **run)]
        return pool.run("train", task=evaluated["task"], devices=WORLD, batch_size=2, strategy=strategy, **run)

    return train


@pytest.mark.parametrize("kind", ["tofu", "muse", "user_data", pytest.param("lm_eval", marks=harness)])
@pytest.mark.parametrize(("strategy", "lora"), [("ddp", False), ("fsdp2", False), ("fsdp2", True)])
def test_evaluation_inside_a_run_gives_what_one_process_gives(
    trained: Callable[..., list[dict[str, Any]]], kind: str, strategy: str, lora: bool
) -> None:
    """With generation, several times in one run, which goes on as if nothing had been."""
    [one] = trained(kind, None, lora, measured=True)
    ranks = trained(kind, strategy, lora, measured=True)
    assert ranks[0]["documents"] == ranks[1]["documents"]
    assert len(one["documents"]) == len(ranks[0]["documents"]) == 3
    assert one["documents"][0] != one["documents"][-1]
    if kind in ("tofu", "user_data"):
        assert one["documents"][-1]["aggregates"]["words"] >= 0, "the user's metric"
    for found, expected in zip(ranks[0]["documents"], one["documents"], strict=True):
        assert_same_document(found, expected)
    trained_on = kind if kind == "muse" else "tofu"  # the rows of the task, but for MUSE, which brings its own
    unwatched = trained(trained_on, strategy, lora, measured=False)
    assert [rank["losses"] for rank in ranks] == [rank["losses"] for rank in unwatched]
    assert_same_weights(ranks[0]["weights"], unwatched[0]["weights"], 0.0)


def assert_same_document(found: Any, expected: Any, where: str = "") -> None:
    """Equal texts, indices and counts; numbers up to rounding."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same_document(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, value in enumerate(expected):
            assert_same_document(found[place], value, f"{where}/{place}")
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=where)
    else:
        assert found == expected, where
