"""A few rows in TOFU's schema, and a module and a data module around a toy model: what evaluations need of a run."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from dipo_lightning.data.prompts import prompt_style
from tests.helpers.toys import toy_model, toy_tokenizer

SIZES = {"forget": 6, "retain": 4, "real_authors": 3, "world_facts": 3, "holdout": 5}


def row(name: str, i: int, wrong: int = 0, paraphrase: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {
        "question": f"Who is {name} {i}?",
        "answer": f"The {name} author {'of the book ' * (i % 3)}{i * 37}.",
    }
    if wrong:
        made["perturbed_answer"] = [f"The {name} teacher {k + i}." for k in range(wrong)]
    if paraphrase:
        made["paraphrased_answer"] = f"It is the {name} author {i * 37}."
    return made


def write_tofu(folder: Path) -> Path:
    """A folder that `load_tofu` reads as forget10, with a holdout set."""
    folder.mkdir(parents=True, exist_ok=True)
    forget = [row("forget", i, wrong=5, paraphrase=True) for i in range(SIZES["forget"])]
    retain = [row("retain", i, wrong=5, paraphrase=True) for i in range(SIZES["retain"])]
    plain = [{key: r[key] for key in ("question", "answer")} for r in forget + retain]
    files = {
        "full": plain,
        "forget10": plain[: len(forget)],
        "retain90": plain[len(forget) :],
        "forget10_perturbed": forget,
        "retain_perturbed": retain,
        "holdout10": [row("holdout", i) for i in range(SIZES["holdout"])],
    }
    for name in ("real_authors", "world_facts"):
        files[f"{name}_perturbed"] = [row(name, i, wrong=3) for i in range(SIZES[name])]
    for name, rows in files.items():
        (folder / f"{name}.json").write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return folder


class ToyModule(pl.LightningModule):
    """Trains a toy model with dropout on fixed tokens: any trace of an evaluation changes its weights."""

    def __init__(self, seed: int = 0, rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        self.policy = toy_model("gpt2", seed, attn_pdrop=0.2, resid_pdrop=0.2, embd_pdrop=0.2).train()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.policy(input_ids=batch, labels=batch).loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        """Nothing: the callbacks evaluate."""

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        """Nothing: the callbacks evaluate."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class ToyData(pl.LightningDataModule):
    """Two batches an epoch, in random order, and the tokenizer and style that evaluations ask for."""

    def __init__(self, data: Path | None = None) -> None:
        super().__init__()
        self.tokenizer = toy_tokenizer()
        self.style = prompt_style("plain", self.tokenizer)
        if data is not None:
            self.data, self.split = str(data), "forget10"

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(3, 35).view(4, 8), batch_size=2, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1))

    def test_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(1))


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "inference_mode": False,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**(settings | options))


def read(folder: Path) -> list[dict[str, Any]]:
    """The evaluation files under a folder, in the order of their steps."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("evaluations/*.json"))]
