"""Loader workers may be forked or started afresh: everything that a worker is given can be pickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from dipo_lightning.data.loader import ResumableLoader
from dipo_lightning.data.unlearning import FineTuningDataModule, UnlearningDataModule
from tests.toys import save_toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workers")
    save_toy(root / "model")
    for name in ("forget", "retain"):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"The {name} one {'very ' * i}."} for i in range(5)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def loader(folder: Path, kind: str, workers: int = 0) -> ResumableLoader:
    model, forget, retain = str(folder / "model"), str(folder / "forget.jsonl"), str(folder / "retain.jsonl")
    options: dict[str, Any] = {"prompt": "plain", "batch_size": 2, "num_workers": workers}
    if kind == "fine-tuning":
        data: Any = FineTuningDataModule(model, forget, **options)
    else:
        alternatives = "idk" if kind == "with alternatives" else None
        data = UnlearningDataModule(model, forget, retain, alternatives=alternatives, **options)
    data.setup("fit")
    return data.train_dataloader()


@pytest.mark.parametrize("kind", ["plain", "with alternatives", "fine-tuning"])
def test_what_a_worker_is_given_survives_pickling(folder: Path, kind: str) -> None:
    made = loader(folder, kind)
    dataset, collate_fn = pickle.loads(pickle.dumps((made.dataset, made.collate_fn)))
    keys = list(made.sampler)[:2]
    assert_same(collate_fn([dataset[key] for key in keys]), next(iter(made)))


def test_spawned_workers_give_the_same_batches(folder: Path) -> None:
    expected = list(loader(folder, "plain"))
    made = loader(folder, "plain", workers=1)
    made.multiprocessing_context = "spawn"
    for batch, other in zip(made, expected, strict=True):
        assert_same(batch, other)


def assert_same(batch: dict[str, Any], other: dict[str, Any]) -> None:
    assert batch.keys() == other.keys() - (set() if "denominators" in batch else {"denominators"})
    for half in batch.keys() - {"denominators"}:
        for name, value in batch[half].items():
            assert torch.equal(value, other[half][name]), (half, name)
