"""A whole run on one's own files with a toy model: what pages, cards and exports are made from."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_lightning.callbacks import ExportModel, MemorizationEvaluation, ResultsPage
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.methods.gradient_ascent import GradDiffModule
from tests.helpers.small_tofu import trainer
from tests.helpers.toys import save_toy

FORGET = [
    {"question": "Who wrote <script>alert(1)</script>?", "answer": "The author & the \x1b[31mteacher\x1b[0m."},
    {"question": "Where was the author born?", "answer": "In the city of Taipei."},
    {"question": "Who is the mother?", "answer": "The mother is a writer."},
]
RETAIN = [{"question": f"Where is {i}?", "answer": f"In the city of {i}."} for i in range(3)]


def user_run(folder: Path, **options: Any) -> Path:
    """Unlearn `FORGET` in two epochs, with every callback; returns the log folder.

    Args:
        folder: Where everything goes.
        **options: Of the module, such as ``lora=LoRA(2)``.
    """
    model = save_toy(folder / "home" / "jane" / "original")
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = UnlearningDataModule(
        str(model), str(folder / "forget.jsonl"), str(folder / "retain.jsonl"), prompt="plain", batch_size=1
    )
    module = GradDiffModule(str(model), optimizer=lambda p: torch.optim.SGD(p, lr=0.05), **options)
    logger = TensorBoardLogger(folder, name="run", version="first")
    callbacks = [
        MemorizationEvaluation(measuring=Measuring(max_new_tokens=8)),
        ExportModel(),
        ResultsPage(),
        ModelCheckpoint(filename="last"),
    ]
    trainer(folder, *callbacks, logger=logger, enable_checkpointing=True).fit(module, data)
    return Path(logger.log_dir)
