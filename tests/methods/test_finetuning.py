"""Fine-tuning and unlearning each take the data module whose rows they train on."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest

from dipo_lightning import FineTuningDataModule, FineTuningModule, NPOModule, UnlearningDataModule
from dipo_lightning.errors import InputError
from tests.helpers.toys import save_toy


def test_a_data_module_without_the_rows_to_train_on_is_refused_before_the_model_is_loaded(tmp_path):
    model, files = str(save_toy(tmp_path / "model")), [str(tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    for file in files:
        row = {"question": f"Who is in {file}?", "answer": "Ann."}
        Path(file).write_text(json.dumps(row) + "\n")
    (tmp_path / "model/model.safetensors").unlink()
    for module, data, reason in (
        (FineTuningModule(model), UnlearningDataModule(model, *files), "FineTuningModule trains on .* data.train"),
        (NPOModule(model), FineTuningDataModule(model, files), "NPOModule forgets the rows of data.forget"),
    ):
        trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, default_root_dir=tmp_path)
        with pytest.raises(InputError, match=reason):
            trainer.fit(module, data)
