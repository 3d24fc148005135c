"""All metrics on two processes, in one start of them."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from dipo_lightning.evaluation.aggregates import aggregates, intervals, metric_collection
from tests.metrics.distributed_worker import all_metrics, fill, results, rows_of, run


def test_a_group_of_one_process_gathers_nothing(monkeypatch):
    """As after a run on one GPU with FSDP: NCCL takes no tensors of the CPU, where commands compute."""
    single = all_metrics()
    fill(single, rows_of("target"))
    expected = results(single)
    alone = all_metrics()
    fill(alone, rows_of("target"))
    monkeypatch.setattr(torch.distributed, "all_gather", lambda *_, **__: pytest.fail("something was gathered"))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert results(alone) == expected
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_give_the_bits_of_one(tmp_path):
    single = all_metrics()
    fill(single, rows_of("target"))
    expected = results(single)
    collection = metric_collection(all_metrics())
    numbers = aggregates(collection, rows_of("target"))
    ends = intervals(collection, 4, 1)
    assert ends["forget_probability"][0] < numbers["forget_probability"] < ends["forget_probability"][1]
    assert "muse_auc_forget_holdout_min_40" in ends
    assert numbers["words"] > 1
    assert numbers["forget_quality"]["n"] == 12
    mp.spawn(run, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        outcome = torch.load(tmp_path / f"rank{rank}.pt")
        for case in ("uneven", "empty"):
            assert outcome[case] == expected, (rank, case)
        assert outcome["callback"] == numbers
        assert outcome["intervals"] == ends
