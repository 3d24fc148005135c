"""The settings of the quickstart: one set for every seed, as the YAML that the ordinary commands read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

AUTHORS = 40
VOCABULARY = 2048
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
FINETUNING = {"epochs": 60, "batch_size": 16, "lr": 3e-3}
UNLEARNING = {"epochs": 10, "batch_size": 16, "lr": 1e-3}
DIPO: dict[str, Any] = {"beta": 0.02, "pair": {"alpha": 0.2, "selection": "relative", "rho": 0.1}}


def finetuning(folder: Path, train: str, name: str, seed: int) -> dict[str, Any]:
    """Return the config of ``fit`` that trains the untrained model on the file ``train`` and exports it.

    Args:
        folder: The quickstart's folder, which holds ``data`` and ``models/untrained``.
        train: Name of the training file.
        name: Name of the run and of the exported model's folder.
        seed: Of the order of the rows.
    """
    return {
        "seed_everything": seed,
        "trainer": {
            **_trainer(folder, name, FINETUNING["epochs"]),
            "gradient_clip_val": 1.0,
            "enable_checkpointing": False,
            "callbacks": [_export(folder / "models" / name)],
        },
        "model": {
            "class_path": "dipo_lightning.FineTuningModule",
            "init_args": {
                "pretrained": str(folder / "models" / "untrained"),
                "optimizer": _adamw(FINETUNING["lr"]),
                "schedule": "linear",
                "warmup_steps": 50,
            },
        },
        "data": {
            "class_path": "dipo_lightning.FineTuningDataModule",
            "init_args": {
                "train": str(folder / "data" / train),
                "prompt": "plain",
                "batch_size": FINETUNING["batch_size"],
                "seed": seed,
            },
        },
    }


def measuring(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Return the config of ``test`` that evaluates the model in ``folder/models/name`` and writes its log."""
    config = unlearning(folder, seed)
    config["trainer"] |= _trainer(folder, f"{name}-log", 1) | {"callbacks": [_evaluation(folder, reference=False)]}
    config["model"]["init_args"]["pretrained"] = str(folder / "models" / name)
    return config


def unlearning(folder: Path, seed: int) -> dict[str, Any]:
    """Return the config of ``fit`` that makes the target forget and evaluates each epoch."""
    return {
        "seed_everything": seed,
        "trainer": {
            **_trainer(folder, "unlearned", UNLEARNING["epochs"]),
            "gradient_clip_val": 1.0,
            "callbacks": [
                _evaluation(folder, reference=True),
                _export(folder / "models" / "unlearned"),
                {"class_path": "dipo_lightning.callbacks.ResultsPage"},
            ],
        },
        "model": {
            "class_path": "dipo_lightning.DiPOModule",
            "init_args": {
                "pretrained": str(folder / "models" / "target"),
                "optimizer": _adamw(UNLEARNING["lr"]),
                "schedule": "linear",
                "reference_cache": str(folder / "reference_cache"),
                **DIPO,
            },
        },
        "data": {
            "class_path": "dipo_lightning.TOFUDataModule",
            "init_args": {
                "data": str(folder / "data"),
                "split": "forget10",
                "prompt": "plain",
                "batch_size": UNLEARNING["batch_size"],
                "seed": seed,
            },
        },
    }


def _trainer(folder: Path, name: str, epochs: int | float) -> dict[str, Any]:
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(folder), "name": name, "version": "run", "default_hp_metric": False},
    }
    return {"accelerator": "cpu", "devices": 1, "max_epochs": int(epochs), "logger": logger}


def _adamw(lr: float) -> dict[str, Any]:
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "weight_decay": 0.0}}


def _export(folder: Path) -> dict[str, Any]:
    return {
        "class_path": "dipo_lightning.callbacks.ExportModel",
        "init_args": {"folder": str(folder), "inside_run": False},
    }


def _evaluation(folder: Path, reference: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"data": str(folder / "data"), "split": "forget10", "measuring": {"max_new_tokens": 48}}
    if reference:
        options["retain_log"] = str(folder / "retain.json")
    return {"class_path": "dipo_lightning.callbacks.TOFUEvaluation", "init_args": options}
