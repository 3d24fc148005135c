"""What each of two processes does in test_distributed.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dipo_lightning import metrics
from dipo_lightning.benchmarks.tofu.metrics import row_log_ratio
from dipo_lightning.errors import InputError

DATA = Path(__file__).resolve().parents[1] / "evaluation" / "logs" / "data"

UTILITY = ("retain", "real_authors", "world_facts")


def rows_of(model: str) -> dict[str, list[dict]]:
    return json.loads((DATA / f"{model}_native.json").read_text())["sets"]


def values_of(rows: list[dict], key: str) -> torch.Tensor:
    return torch.tensor([row[key] for row in rows], dtype=torch.float64)


def all_metrics() -> dict[str, Any]:
    reference = {row["index"]: row_log_ratio(row, "geometric") for row in rows_of("retain")["forget"]}
    return {
        "probability": metrics.Probability(),
        "normalized": metrics.NormalizedProbability(),
        "truth_ratio": metrics.TruthRatio(),
        "forget_quality": metrics.ForgetQuality(reference),
        "exact": metrics.ExactMemorization(),
        "strength": metrics.ExtractionStrength(),
        "rouge": metrics.ROUGERecall(),
        "fluency": metrics.Fluency(),
        "perplexity": metrics.Perplexity(),
        "verbmem": metrics.VerbMem(),
        "knowmem": metrics.KnowMem("open_unlearning"),
        "auc": metrics.MembershipAUC(),
        "privleak": metrics.PrivLeak(0.5),
        "utility": metrics.ModelUtility(),
    }


def fill(found: dict[str, Any], sets: dict[str, list[dict]]) -> None:
    """Update every metric, a batch of two rows at a time: ranks make different numbers of updates."""
    for start in range(0, len(sets["forget"]), 2):
        rows = sets["forget"][start : start + 2]
        index, nll = values_of(rows, "index").long(), values_of(rows, "nll")
        correct, wrong = values_of(rows, "correct_nll"), values_of(rows, "wrong_nll")
        texts = [row["generation"] for row in rows], [row["answer"] for row in rows]
        found["probability"].update(index, nll)
        found["normalized"].update(index, nll, wrong)
        found["truth_ratio"].update(index, correct, wrong)
        found["forget_quality"].update(index, correct, wrong)
        found["exact"].update(index, values_of(rows, "exact_memorization"))
        found["strength"].update(index, values_of(rows, "extraction_strength"))
        found["fluency"].update(index, texts[0])
        found["perplexity"].update(index, *(values_of(rows, f"generation_{key}") for key in ("nll", "tokens")))
        for name in ("rouge", "verbmem", "knowmem"):
            found[name].update(index, *texts)
        for name in ("auc", "privleak"):
            found[name].update(index, values_of(rows, "min_k"), True)
    if sets["holdout"]:
        for name in ("auc", "privleak"):
            found[name].update(values_of(sets["holdout"], "index"), values_of(sets["holdout"], "min_k"), False)
    for name in UTILITY:
        if rows := sets[name]:
            keys = ("index", "nll", "correct_nll", "wrong_nll", "rouge_l_recall")
            found["utility"].update(name, *(values_of(rows, key) for key in keys))


def results(found: dict[str, Any]) -> dict[str, Any]:
    return {name: metric.compute() for name, metric in found.items()}


def uneven(rows: list[dict], rank: int) -> list[dict]:
    """Two thirds for rank 0, and for rank 1 the rest with two repetitions, as a padding sampler gives them."""
    cut = 2 * len(rows) // 3
    return rows[:cut] if rank == 0 else rows[cut:] + rows[:2]


def run(rank: int, folder: str) -> None:
    """Compute everything with uneven shards, then with all rows on rank 0 and none on rank 1."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    sets = rows_of("target")
    shards = {
        "uneven": {name: uneven(rows, rank) for name, rows in sets.items()},
        "empty": {name: rows if rank == 0 else [] for name, rows in sets.items()},
    }
    outcome = {}
    for case, shard in shards.items():
        found = all_metrics()
        fill(found, shard)
        outcome[case] = results(found)
    missing = metrics.RowMean(nan="raise")
    missing.update(torch.tensor([rank]), torch.tensor([float("nan") if rank else 1.0]))
    try:
        missing.compute()
    except InputError as error:  # on both ranks, or the other would wait for ever
        outcome["raised"] = str(error)
    torch.save(outcome, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
