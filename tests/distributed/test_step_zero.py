"""Before the first step policy and reference are equal to the last bit, whatever computes them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dipo_lightning.errors import RunError
from tests.distributed import jobs
from tests.distributed.pool import WORLD, Pool

COMPUTING: dict[str, dict[str, Any]] = {
    "ddp-float32": {"strategy": "ddp"},
    "ddp-bf16-mixed": {"strategy": "ddp", "precision": "bf16-mixed"},
    "fsdp2-float32": {"strategy": "fsdp2"},
    "fsdp2-bfloat16": {"strategy": "fsdp2", "compute_dtype": "bfloat16"},
}

LOSSES: dict[str, dict[str, Any]] = {
    "dipo": {"method": "dipo"},
    "dipo-logits-kl": {"method": "dipo", "form": "logits", "retain_loss": "kl"},
    "npo": {"method": "npo"},
    "rmu": {"method": "rmu", "layer": 0},
}

REFERENCES: dict[str, dict[str, Any]] = {
    "live": {"reference": "live"},
    "adapters_off": {"reference": "adapters_off", "lora": {"rank": 4}},
}


@pytest.mark.parametrize(("computing", "loss", "reference"), list(product(COMPUTING, LOSSES, REFERENCES)))
def test_log_ratio_is_exactly_zero(pool: Pool, task: str, computing: str, loss: str, reference: str) -> None:
    options = COMPUTING[computing] | LOSSES[loss] | REFERENCES[reference]
    for rank in pool.run("train", task=task, devices=WORLD, batch_size=2, max_steps=2, **options):
        first, *later = rank["gaps"]
        assert first == 0
        assert max(later) > 0  # and it is measured: one step later it is something


@pytest.mark.parametrize("computing", ["fsdp2-float32", "fsdp2-bfloat16"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_log_ratio_is_exactly_zero_on_one_process_that_shards_over_itself(
    alone: Pool, task: str, computing: str, reference: str
) -> None:
    options = COMPUTING[computing] | REFERENCES[reference]
    [rank] = alone.run("train", task=task, batch_size=3, max_steps=2, **options)
    assert rank["gaps"][0] == 0
    assert max(rank["gaps"][1:]) > 0


@pytest.mark.parametrize("family", ["gemma2", "phi"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_log_ratio_is_exactly_zero_with_a_head_that_is_more_than_a_product(
    pool: Pool, tmp_path: Path, family: str, reference: str
) -> None:
    """The head is run outside the sharded model, which computes in another dtype than its weights have."""
    options = {"method": "dipo", **COMPUTING["fsdp2-bfloat16"], **REFERENCES[reference]}
    task = str(jobs.write_task(tmp_path, family))
    for rank in pool.run("train", task=task, devices=WORLD, batch_size=2, max_steps=2, **options):
        assert rank["gaps"][0] == 0
        assert max(rank["gaps"][1:]) > 0


SAVING: dict[str, dict[str, Any]] = {
    "activation_checkpointing": {"activation_checkpointing": True},
    "cpu_offload": {"cpu_offload": True},
    "compile_blocks": {"compile_blocks": True, "compiler": "aot_eager"},
    "accumulation and clipping": {"accumulate": 2, "clip": 1.0},
}


@pytest.mark.parametrize("saving", SAVING)
@pytest.mark.parametrize("reference", REFERENCES)
def test_what_saves_memory_leaves_it_at_zero(pool: Pool, task: str, saving: str, reference: str) -> None:
    options = SAVING[saving] | REFERENCES[reference] | COMPUTING["fsdp2-bfloat16"]
    for rank in pool.run("train", task=task, devices=WORLD, batch_size=2, max_steps=2, **options):
        assert rank["gaps"][0] == 0
        assert max(rank["gaps"][1:]) > 0


CACHED: dict[str, dict[str, Any]] = {
    "hidden_states": {"method": "dipo", "reference": "hidden_states"},
    "hidden_states-logits": {"method": "dipo", "reference": "hidden_states", "form": "logits"},
    "hidden_states-npo": {"method": "npo", "reference": "hidden_states"},
    "directions": {"method": "dipo", "reference": "directions", "lora": {"rank": 4}},
}
"""What was computed once, in other batches than the policy's: a matrix product rounds by its shape."""


@pytest.mark.parametrize(("computing", "cached"), list(product(COMPUTING, CACHED)))
def test_log_ratio_to_a_cached_reference_is_exactly_zero(pool: Pool, task: str, computing: str, cached: str) -> None:
    arguments = {"devices": WORLD, "batch_size": 2, "max_steps": 2, **COMPUTING[computing], **CACHED[cached]}
    for rank in pool.run("train", task=task, **arguments):
        assert rank["gaps"][0] == 0
        assert max(rank["gaps"][1:]) > 0


@pytest.mark.parametrize("cached", CACHED)
def test_a_policy_that_is_no_longer_the_reference_is_an_error(task: str, cached: str) -> None:
    """The terms are 0 before the first step because both are equal, not because it is the first step."""
    with pytest.raises(RunError, match="before the first step, where they are one"):
        jobs.train(task, batch_size=3, max_steps=1, nudge=0.01, **CACHED[cached])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_log_ratio_is_exactly_zero_on_one_device(task: str, precision: str, loss: str) -> None:
    gaps = jobs.train(task, batch_size=3, max_steps=2, precision=precision, reference="live", **LOSSES[loss])["gaps"]
    assert gaps[0] == 0
    assert max(gaps[1:]) > 0
