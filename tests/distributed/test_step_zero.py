"""Before the first step policy and reference are equal to the last bit, whatever computes them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

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
    "adapters_off": {"reference": "adapters_off", "lora_rank": 4},
}


@pytest.mark.parametrize(("computing", "loss", "reference"), list(product(COMPUTING, LOSSES, REFERENCES)))
def test_log_ratio_is_exactly_zero(pool: Pool, task: str, computing: str, loss: str, reference: str) -> None:
    options = COMPUTING[computing] | LOSSES[loss] | REFERENCES[reference]
    for rank in pool.run("train", task=task, devices=WORLD, batch_size=2, max_steps=2, **options):
        first, *later = rank["gaps"]
        assert first == 0
        assert max(later) > 0  # and it is measured: one step later it is something


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_log_ratio_is_exactly_zero_on_one_device(task: str, precision: str, loss: str) -> None:
    gaps = jobs.train(task, batch_size=3, max_steps=2, precision=precision, reference="live", **LOSSES[loss])["gaps"]
    assert gaps[0] == 0
    assert max(gaps[1:]) > 0
