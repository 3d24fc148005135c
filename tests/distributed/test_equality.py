"""Two processes do what one does with the same global batch: losses and weights, for every way of training."""

from __future__ import annotations

import functools
import json
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.distributed import jobs
from tests.distributed.pool import WORLD, Pool

TOLERANCE = 32 * 2.0**-24
"""Relative: 1.9e-6. Two processes add a loss's terms, some hundreds to a thousand, in another order than one does; each
addition rounds by up to 2^-24, and such errors grow as the square root of their number (1.1e-6 was seen)."""

Case = dict[str, Any]


def case(strategy: str, method: str, reference: str, lora: bool, accumulate: int, clip: bool) -> Case:
    chosen = {"strategy": strategy, "method": method, "reference": reference, "accumulate": accumulate}
    if lora:
        chosen |= {"lora": {"rank": 4}}
    if clip:
        chosen |= {"clip": 1.0}  # far below the gradient's norm, so that it acts in every step
    return chosen


def references(method: str, lora: bool) -> list[str]:
    return ["live", "hidden_states"] + ["adapters_off"] * lora + ["directions"] * (lora and method == "dipo")


FULL = [
    case(strategy, method, reference, lora, accumulate, clip)
    for strategy, method, lora, accumulate, clip in product(
        ("ddp", "fsdp2"), ("dipo", "npo"), (False, True), (1, 2), (False, True)
    )
    for reference in references(method, lora)
]

#: Every pair of two choices occurs at least once.
COVERING = [
    case("ddp", "dipo", "live", False, 2, True),
    case("fsdp2", "dipo", "live", False, 1, False),
    case("fsdp2", "npo", "live", False, 2, True),
    case("ddp", "npo", "hidden_states", False, 1, False),
    case("fsdp2", "dipo", "hidden_states", False, 1, True),
    case("fsdp2", "dipo", "adapters_off", True, 2, True),
    case("ddp", "npo", "adapters_off", True, 1, True),
    case("ddp", "dipo", "directions", True, 2, False),
    case("fsdp2", "npo", "hidden_states", True, 2, False),
    case("fsdp2", "dipo", "directions", True, 1, True),
]


def name(chosen: Case) -> str:
    return "-".join(f"{key}={value}" if not isinstance(value, str) else value for key, value in chosen.items())


@functools.cache
def one_process(task: str, chosen: str) -> dict[str, Any]:
    """Train in this process, once for the same options (as JSON, which has a hash)."""
    return jobs.train(task, **json.loads(chosen))


def compare(
    pool: Pool, task: str, chosen: Case, changes: Case | None = None, timeout: float = 120, **options: Any
) -> None:
    """Train on two processes and on one, and assert that losses and weights are the same.

    Args:
        changes: Options of the two processes only, which must change nothing.
        timeout: Seconds that the two processes may take.
    """
    micro = 2
    options |= {"epochs": chosen["accumulate"]}  # as many optimiser steps with accumulation as without
    alone = {key: value for key, value in chosen.items() if key not in ("strategy", "accumulate")} | options
    one = one_process(task, json.dumps({**alone, "batch_size": micro * WORLD * chosen["accumulate"]}, sort_keys=True))
    arguments = {"devices": WORLD, "batch_size": micro, **chosen, **options, **(changes or {})}
    ranks = pool.run("train", timeout, task=task, **arguments)
    losses = np.mean([rank["losses"] for rank in ranks], axis=0).reshape(-1, chosen["accumulate"]).sum(1)
    np.testing.assert_allclose(losses, one["losses"], rtol=TOLERANCE)
    for rank in ranks:  # what is logged is the mean over the global batch too, at each optimiser step
        for found, expected in zip(
            rank["terms"][chosen["accumulate"] - 1 :: chosen["accumulate"]], one["terms"], strict=True
        ):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert_same_weights(ranks[0]["weights"], one["weights"])


def assert_same_weights(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = TOLERANCE
) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        size, distance = (np.linalg.norm(part.astype(np.float64)) for part in (value, found[key] - value))
        assert distance <= tolerance * size, f"{key} differs by {distance / size:.1e}"


@pytest.mark.parametrize("chosen", COVERING, ids=name)
def test_two_processes_equal_one(pool: Pool, task: str, chosen: Case) -> None:
    compare(pool, task, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", FULL, ids=name)
def test_two_processes_equal_one_in_every_combination(pool: Pool, task: str, chosen: Case) -> None:
    compare(pool, task, chosen)


def test_adam_with_an_epsilon_above_rounding(pool: Pool, task: str) -> None:
    compare(pool, task, case("fsdp2", "dipo", "live", False, 2, True), optimizer="adamw")


OTHERS: dict[str, Case] = {
    "simnpo": {},
    "undial": {"reference": "live", "lambda_": 1.0},
    "ce_u": {},
    "pdu": {"epsilon": 8.0, "dual_step": 0.5, "dual_warmup_epochs": 0, "lambda_": 3.0},  # one multiplier on all ranks
    "rmu": {"reference": "live", "layer": 0},  # the blocks behind the steered one get no gradient
    "rmu, chosen weights": {
        "method": "rmu",
        "reference": "live",
        "layer": 0,
        "retain_loss": "kl",
        "trained": [r"model\.layers\.(0|1)\.mlp\.down_proj\.weight"],
    },
    "altpo": {"reference": "live", "per_row": 2, "max_new_tokens": 6},  # written anew by every run
    "grad_diff": {"retain_loss": "kl", "reference": "live"},
}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("method", OTHERS)
def test_other_methods(pool: Pool, task: str, strategy: str, method: str) -> None:
    chosen = {"strategy": strategy, "method": method, "accumulate": 1, "clip": 1.0}
    compare(pool, task, chosen | OTHERS[method])


def test_a_mean_of_means_would_be_seen(pool: Pool, task: str) -> None:
    """The same comparison where each process divides by the tokens of its own batch instead of the global one."""
    chosen = case("fsdp2", "dipo", "live", False, 1, False)
    with pytest.raises(AssertionError, match="Mismatched elements: 4 / 4"):
        compare(pool, task, chosen, changes={"own_counts": True}, retain_loss="nll")


def test_the_weights_have_moved(task: str) -> None:
    """Else the comparisons above would compare the pretrained model with itself."""
    start = jobs.pretrained_weights(task)
    trained = one_process(task, json.dumps({"batch_size": 4, "method": "dipo", "reference": "live"}, sort_keys=True))[
        "weights"
    ]
    assert any(np.abs(trained[key] - start[key]).max() > 1e-2 for key in start)
