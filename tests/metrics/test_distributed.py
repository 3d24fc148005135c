"""All metrics on two processes, in one start of them."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from tests.metrics.distributed_worker import all_metrics, fill, results, rows_of, run


@pytest.mark.distributed
def test_two_processes_give_the_bits_of_one(tmp_path):
    single = all_metrics()
    fill(single, rows_of("target"))
    expected = results(single)
    mp.spawn(run, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        outcome = torch.load(tmp_path / f"rank{rank}.pt")
        for case in ("uneven", "empty"):
            assert outcome[case] == expected, (rank, case)
        assert "row 1" in outcome["raised"]
