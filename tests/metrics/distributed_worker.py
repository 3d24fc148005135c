"""Work of each of the two processes in test_distributed.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dipo_lightning.benchmarks.muse import MUSE
from dipo_lightning.benchmarks.tofu import TOFU
from dipo_lightning.evaluation.aggregates import aggregates, intervals, metric_collection
from dipo_lightning.evaluation.rows import EvaluationLog, add_log_ratios
from dipo_lightning.metrics import RowMean

DATA = Path(__file__).resolve().parents[1] / "evaluation" / "logs" / "data"


def rows_of(model: str) -> dict[str, list[dict]]:
    sets = json.loads((DATA / f"{model}_native.json").read_text())["sets"]
    add_log_ratios(sets, "geometric")
    for name in ("forget", "holdout"):
        scored = [row | {"min_40": row["min_k"], "gradnorm": 1 / (1 + row["index"])} for row in sets[name]]
        sets |= {name: scored, f"privleak_{name}": scored}
    rouge = [row | {"rouge": row["rouge_l_recall"]} for row in sets["retain"]]
    return sets | dict.fromkeys(("verbmem", "knowmem_forget", "knowmem_retain"), rouge)


class Words(RowMean):
    """A user's own metric: words of what the model says about the forget rows."""

    def __init__(self) -> None:
        super().__init__("forget")

    def value(self, row: Any) -> float:
        return len(row["generation"].split())


def all_metrics() -> dict[str, Any]:
    retain = EvaluationLog(TOFU.format, {}, rows_of("retain"))  # type: ignore[arg-type]  # read from JSON
    muse = {f"muse_{name}": metric for name, metric in MUSE().metrics({}, retain).items()}
    return {**TOFU().metrics({}, retain), **muse, "words": Words()}


def fill(found: dict[str, Any], sets: dict[str, list[dict]]) -> None:
    """Update every metric, a batch of two rows of each set at a time: ranks make different numbers of updates."""
    for start in range(0, max(map(len, sets.values()), default=0) or 1, 2):
        for metric in found.values():
            metric.update({name: rows[start : start + 2] for name, rows in sets.items()})


def results(found: dict[str, Any]) -> dict[str, Any]:
    return {name: repr((metric.compute(), metric.intervals(4))) for name, metric in found.items()}


def uneven(rows: list[dict], rank: int) -> list[dict]:
    """Two thirds for rank 0, and for rank 1 the rest with two repetitions, as a padding sampler gives them."""
    cut = 2 * len(rows) // 3
    return rows[:cut] if rank == 0 else rows[cut:] + rows[:2]


def run(rank: int, folder: str) -> None:
    """Compute everything with uneven shards, with all rows on rank 0 and none on rank 1, and as a callback does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    sets = rows_of("target")
    shards = {
        "uneven": {name: uneven(rows, rank) for name, rows in sets.items()},
        "empty": {name: rows if rank == 0 else [] for name, rows in sets.items()},
    }
    outcome: dict[str, Any] = {}
    for case, shard in shards.items():
        found = all_metrics()
        fill(found, shard)
        outcome[case] = results(found)
    collection = metric_collection(all_metrics())
    outcome["callback"] = aggregates(collection, sets)  # type: ignore[arg-type]  # read from JSON
    outcome["intervals"] = intervals(collection, 4, 1)
    torch.save(outcome, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
