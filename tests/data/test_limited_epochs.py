"""Steps of an epoch are means over the global batch, where the epoch is cut off and where accumulation changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint

from dipo_lightning.data.unlearning import UnlearningDataModule
from tests.helpers.toys import save_toy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # Lightning 2.6 asks torch 2.13 by an old name
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
)


class Recorder(pl.LightningModule):
    """Remembers what each step is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.rows: list[float] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch["forget"]["index"].tolist()))
        self.rows.append(batch["forget"]["index"].numel() / batch["denominators"]["rows"])
        return self.weight.square()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Lightning warns without."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("limits")
    save_toy(root / "model")
    for name in ("forget", "retain"):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"The {name} one {i}."} for i in range(10)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def fit(
    folder: Path,
    keep: Path,
    checkpoint: Path | None = None,
    callbacks: Sequence[Callback] = (),
    workers: int = 0,
    **options: Any,
) -> Recorder:
    names = (str(folder / name) for name in ("model", "forget.jsonl", "retain.jsonl"))
    name = "again-{step}" if checkpoint else "{step}"
    every = ModelCheckpoint(keep, filename=name, every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=3,
        callbacks=[every, *callbacks], **options,
    )  # fmt: skip
    module = Recorder()
    data = UnlearningDataModule(*names, prompt="plain", batch_size=2, num_workers=workers)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.parametrize("limit", [2, 0.7, 1.0])
def test_a_resumed_run_is_given_what_is_left(folder: Path, tmp_path: Path, limit: float) -> None:
    whole = fit(folder, tmp_path, limit_train_batches=limit).seen
    batches = {2: 2, 0.7: 3, 1.0: 5}[limit]
    assert [epoch for epoch, _ in whole] == [0] * batches + [1] * batches + [2] * batches
    for step in (1, batches, batches + 1):  # in the middle of an epoch, at its end, in the next
        resumed = fit(folder, tmp_path, tmp_path / f"step={step}.ckpt", limit_train_batches=limit)
        assert resumed.seen == whole[step:], step


def test_an_optimiser_step_that_the_limit_cuts_off_is_still_a_mean(folder: Path, tmp_path: Path) -> None:
    """Three batches of an epoch, accumulated by two: the second step has one batch, and all of the mean."""
    rows = fit(folder, tmp_path, limit_train_batches=3, accumulate_grad_batches=2).rows
    # Lightning divides each micro-batch by accumulate_grad_batches
    assert [sum(rows[:2]) / 2, rows[2] / 2] == pytest.approx([1, 1])


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_are_means_while_a_callback_changes_the_accumulation(folder: Path, tmp_path: Path, workers: int) -> None:
    """Five batches of an epoch by 1, then by 2 and then by 3: the last step of an epoch is short."""
    changing = GradientAccumulationScheduler({0: 1, 1: 2, 2: 3})
    rows = fit(folder, tmp_path, callbacks=[changing], workers=workers).rows
    steps = [*([one] for one in rows[:5]), rows[5:7], rows[7:9], rows[9:10], rows[10:13], rows[13:]]
    by = [1, 1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert [sum(step) / number for step, number in zip(steps, by, strict=True)] == pytest.approx([1] * 10)
