"""Checkpoint files are streamed to the disk that they end on, and read as they are asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dipo_lightning.callbacks import Checkpoint
from dipo_lightning.callbacks.run_record import StreamingIO


def test_a_checkpoint_passes_through_no_other_folder_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    save = torch.save

    def noted(content: dict[str, Any], file: Path) -> None:
        assert isinstance(file, Path), "Lightning's own writer fills a buffer in memory first"
        written.append(file)
        save(content, file)

    monkeypatch.setattr(torch, "save", noted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    path = tmp_path / "last.ckpt"
    StreamingIO().save_checkpoint({"x": torch.arange(5)}, path)
    assert [file.parent for file in written] == [tmp_path]
    assert list(tmp_path.iterdir()) == [path]
    read = StreamingIO().load_checkpoint(path)["x"]
    assert read.tolist() == [0, 1, 2, 3, 4]
    assert read.untyped_storage().filename == str(path), "mapped, not read"


@pytest.mark.parametrize("own", [TorchCheckpointIO, type("Remote", (TorchCheckpointIO,), {})])
def test_a_run_streams_unless_the_user_has_a_writer_of_his_own(tmp_path: Path, own: type) -> None:
    strategy = SimpleNamespace(checkpoint_io=own(), broadcast=lambda value: value)
    trainer: Any = SimpleNamespace(strategy=strategy, is_global_zero=True, fast_dev_run=False)
    Checkpoint(folder=str(tmp_path)).setup(trainer, SimpleNamespace(), "validate")  # type: ignore[arg-type]
    assert type(strategy.checkpoint_io) is (StreamingIO if own is TorchCheckpointIO else own)
