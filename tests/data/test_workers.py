"""Loader workers may be forked or started afresh: everything that a worker is given can be pickled."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dipo_lightning.data.loader import ResumableLoader
from dipo_lightning.data.unlearning import FineTuningDataModule, UnlearningDataModule
from tests.helpers.toys import save_toy


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


@pytest.mark.parametrize(
    ("ranks", "limit", "said"),
    [(3, 1.0, "1 of them is trained on twice"), (4, 1.0, "3 of them are"), (3, 0.5, ""), (5, 1.0, ""), (1, 1.0, "")],
)
def test_rows_that_fill_up_the_processes_are_said(
    folder: Path, caplog: pytest.LogCaptureFixture, ranks: int, limit: float, said: str
) -> None:
    """Five rows: each process takes as many, and the last ones come again; not where the epoch ends before them."""
    given = {"distributed_sampler_kwargs": {"num_replicas": ranks, "rank": 0}, "accumulate_grad_batches": 1}
    files = (str(folder / name) for name in ("model", "forget.jsonl", "retain.jsonl"))
    data: Any = UnlearningDataModule(*files, prompt="plain", batch_size=1 if limit == 0.5 else 2)
    data.trainer = SimpleNamespace(**given, limit_train_batches=limit)
    data.setup("fit")
    with caplog.at_level(logging.INFO):
        data.train_dataloader()
    assert said in caplog.text
    assert ("5 rows do not divide" in caplog.text) is bool(said)


def assert_same(batch: dict[str, Any], other: dict[str, Any]) -> None:
    assert batch.keys() == other.keys() - (set() if "denominators" in batch else {"denominators"})
    for half in batch.keys() - {"denominators"}:
        for name, value in batch[half].items():
            assert torch.equal(value, other[half][name]), (half, name)


def test_a_loader_saved_again_before_its_first_batch_is_at_the_same_place(folder: Path) -> None:
    begun, resumed = loader(folder, "plain"), loader(folder, "plain")
    batches = iter(begun)
    next(batches)
    state = begun.state_dict()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for batch, other in zip(resumed, batches, strict=True):
        assert_same(batch, other)
    resumed.load_state_dict(begun.state_dict())
    assert resumed.state_dict()["done"] == 0, "after the last batch a new epoch begins"
