"""A checkpoint that is gone on from with other settings than it was written with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.refused import TRAINER, assert_a_sentence, fit
from tests.reliability.toy_run import write_inputs

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
                  "init_args": {"pretrained": str(folder / "model"), "lora_rank": 2, "lora_dropout": 0.3}},
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
    assert_a_sentence(
        code, capsys.readouterr().err, "inside an epoch of 5 batches of 2 rows; here an epoch has 10 of 1"
    )
