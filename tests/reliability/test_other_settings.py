"""A checkpoint that is gone on from with other settings than it was written with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.refused import TRAINER, assert_a_sentence, fit
from tests.reliability.toy_run import differences, write_inputs

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("settings")
    write_inputs(root)
    return root


def run(folder: Path, here: Path, name: str, *options: str) -> int:
    """Train in batches of two of ten rows, keeping ``name/last.ckpt``; returns the exit code."""
    keeping = {"class_path": "dipo_lightning.callbacks.Checkpoint", "init_args": {"folder": str(here / name)}}
    config: dict[str, Any] = {
        "trainer": TRAINER | {"max_steps": -1, "enable_checkpointing": True, "callbacks": [keeping]},
        "model": {"class_path": "dipo_lightning.GradDiffModule",
                  "init_args": {"pretrained": str(folder / "model"), "lora": {"rank": 2, "dropout": 0.3}}},
        "data": {"class_path": "dipo_lightning.UnlearningDataModule",
                 "init_args": {"forget": str(folder / "forget.jsonl"), "retain": str(folder / "retain.jsonl"),
                               "prompt": "plain", "batch_size": 2}},
    }  # fmt: skip
    return fit(here, config, *options)


def test_other_batches_in_the_middle_of_an_epoch_are_refused(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, here, "begun", "--trainer.max_steps=3") == 0
    goes_on = f"--ckpt_path={here / 'begun' / 'last.ckpt'}"
    code = run(folder, here, "other", "--trainer.max_epochs=2", goes_on, "--data.batch_size=1")
    assert_a_sentence(code, capsys.readouterr().err, "data.batch_size was 2, now 1")


def trained(here: Path, name: str) -> dict[str, Any]:
    """The weights and optimiser states that a run ended with."""
    saved = torch.load(here / name / "last.ckpt", weights_only=True)
    return {"weights": saved["state_dict"], "optimizer": saved["optimizer_states"], "evaluations": {}, "scalars": {},
            "place": (saved["epoch"], saved["global_step"])}  # fmt: skip


@pytest.mark.parametrize("limit", ["max_epochs=2", "max_steps=3", "max_steps=8"])
def test_a_finished_run_is_made_longer(folder: Path, here: Path, limit: str) -> None:
    """Its limit was the end of an epoch, or the middle of one: the longer run is the uninterrupted one."""
    assert run(folder, here, "whole", "--trainer.max_epochs=3") == 0
    assert run(folder, here, "first", "--trainer.max_epochs=3", f"--trainer.{limit}") == 0
    goes_on = f"--ckpt_path={here / 'first' / 'last.ckpt'}"
    assert run(folder, here, "same", "--trainer.max_epochs=3", f"--trainer.{limit}", goes_on) == 0
    assert not (here / "same" / "last.ckpt").exists(), "at the same limits there is nothing to do"
    assert run(folder, here, "longer", "--trainer.max_epochs=3", goes_on) == 0
    whole, longer = trained(here, "whole"), trained(here, "longer")
    assert differences(whole, trained(here, "first")) == ["weights", "optimizer"]
    assert differences(whole, longer) == []
    assert whole["place"] == longer["place"] == (3, 15)


def test_a_run_that_a_rule_stopped_stays_stopped(folder: Path, here: Path) -> None:
    stops = ["--trainer.max_epochs=3", "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
             "--trainer.callbacks.monitor=train/loss", "--trainer.callbacks.stopping_threshold=1e9",
             "--trainer.callbacks.check_on_train_epoch_end=true"]  # fmt: skip
    assert run(folder, here, "first", *stops) == 0
    assert trained(here, "first")["place"] == (1, 5)
    assert run(folder, here, "again", *stops, f"--ckpt_path={here / 'first' / 'last.ckpt'}") == 0
    assert not (here / "again" / "last.ckpt").exists()
