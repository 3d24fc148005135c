"""MUSE in small: a made-up newspaper, a tiny model that has read all of it, and one that never saw the part to forget.

What `configs/muse/small.yaml` starts from: no network, and no text of anybody's.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dipo_lightning.errors import InputError

ARTICLES = 6
VOCABULARY = 512
LENGTH = 256
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
BATCH_SIZE, RATE = 4, 3e-3
VERBMEM_TOKENS = 64
"""Half of MUSE's: the made articles are short."""
FORGOTTEN, KEPT = "scal/forget_4", ("train/retain1", "train/retain2")


class Reading(NamedTuple):
    """How a model comes to know its part of the corpus.

    Attributes:
        start: The model that it begins as.
        epochs: Passes over what it reads.
        orders: How often, each time in another order, an epoch reads a part: in one order alone a model learns what
            comes next, not what is asked.
    """

    start: str
    epochs: int
    orders: dict[str, int]


READINGS = {
    "retain": Reading("untrained", 4, dict.fromkeys(KEPT, 10)),
    "target": Reading("retain", 3, {FORGOTTEN: 8, **dict.fromkeys(KEPT, 6)}),
}
"""The retain model reads what is kept, and no more; the target goes on from there with all of it."""


def muse_small(output: str = "runs/muse-small", seed: int = 0) -> None:
    """Make a small corpus in MUSE's schema, a model that knows it, and one that never saw what is to be forgotten.

    Writes ``news`` (the corpus), ``target``, ``retain`` and ``retain.json`` (its evaluation) into the folder.
    What is already there is not made again. Then run: dipo-lightning fit --config muse/small

    Args:
        output: Folder for everything it makes.
        seed: Seed of the corpus, the models and the training.
    """
    folder = Path(output)
    _check_earlier(folder, seed)
    prepare(folder, seed)
    for name, reading in READINGS.items():
        if not (folder / name).is_dir():
            write_reading(folder, name, reading, seed)
            _run("fit", folder, f"making-{name}", training(folder, name, seed))
            (folder / "making" / name).rename(folder / name)
    if not (folder / "retain.json").is_file():
        _run("test", folder, "measuring-retain", measuring(folder, seed))
        logs = sorted((folder / "measuring-retain" / "run" / "evaluations").glob("*.json"))
        shutil.copy(logs[-1], folder / "retain.json")
    print(f"{folder} has the corpus, the target and the retain model with its log.")


def prepare(folder: Path, seed: int) -> None:
    """Write the corpus, and an untrained model with its tokenizer, if they are not there."""
    from dipo_lightning.benchmarks.muse.data import forget_texts, load_muse
    from dipo_lightning.quickstart.model import train_tokenizer, write_untrained
    from dipo_lightning.quickstart.newspaper import write_fictitious_news

    write_fictitious_news(folder / "news", seed, ARTICLES)
    corpus = load_muse(folder / "news")
    rows = forget_texts(folder / "news", FORGOTTEN) + corpus.train_retain + corpus.retain2
    tokenizer = train_tokenizer([row["text"] for row in rows], VOCABULARY)
    write_untrained(folder / "untrained", tokenizer, seed, **SHAPE)


def write_reading(folder: Path, name: str, reading: Reading, seed: int) -> None:
    """Write what a model is trained on: articles and single questions of its parts, in random orders."""
    from dipo_lightning.data.files import file_records

    rng = random.Random(seed)
    texts: list[str] = []
    for part, orders in reading.orders.items():
        records = file_records(folder / "news" / f"{part}.jsonl")
        texts += [unit for record in records for unit in record.fields["text"].split("\n\n")] * orders
    rng.shuffle(texts)
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    (folder / f"reading-{name}.jsonl").write_text(lines, encoding="utf-8")


def training(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Return the config of ``fit`` that trains on what `write_reading` wrote."""
    shutil.rmtree(folder / "making", ignore_errors=True)  # an interrupted one
    export = {"folder": str(folder / "making" / name), "inside_run": False}
    return {
        "seed_everything": seed,
        "trainer": {
            **_trainer(folder, f"making-{name}", READINGS[name].epochs),
            "gradient_clip_val": 1.0,
            "enable_checkpointing": False,
            "callbacks": [{"class_path": "dipo_lightning.callbacks.ExportModel", "init_args": export}],
        },
        "model": {
            "class_path": "dipo_lightning.FineTuningModule",
            "init_args": {
                "pretrained": str(folder / READINGS[name].start),
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": RATE, "weight_decay": 0.0}},
                "schedule": "linear",
                "warmup_steps": 20,
            },
        },
        "data": {
            "class_path": "dipo_lightning.FineTuningDataModule",
            "init_args": {
                "train": str(folder / f"reading-{name}.jsonl"),
                "prompt": "text",
                "max_length": LENGTH,
                "batch_size": BATCH_SIZE,
                "seed": seed,
            },
        },
    }


def measuring(folder: Path, seed: int) -> dict[str, Any]:
    """Return the config of ``test`` that writes the log of the retain model."""
    evaluation = {"baseline": "none", "space": "answer", "verbmem_tokens": VERBMEM_TOKENS}
    return {
        "seed_everything": seed,
        "trainer": {
            **_trainer(folder, "measuring-retain", 1),
            "callbacks": [{"class_path": "dipo_lightning.callbacks.MUSEEvaluation", "init_args": evaluation}],
        },
        "model": {
            "class_path": "dipo_lightning.FineTuningModule",
            "init_args": {"pretrained": str(folder / "retain")},
        },
        "data": {
            "class_path": "dipo_lightning.MUSEDataModule",
            "init_args": {"data": str(folder / "news"), "max_length": LENGTH},
        },
    }


def _run(command: str, folder: Path, name: str, config: dict[str, Any]) -> None:
    from dipo_lightning.quickstart import run

    shutil.rmtree(folder / name, ignore_errors=True)
    run(command, folder / f"{name}.yaml", config, name)


def _trainer(folder: Path, name: str, epochs: int) -> dict[str, Any]:
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(folder), "name": name, "version": "run"},
    }
    progress = {"enable_progress_bar": False, "enable_model_summary": False}
    return {"accelerator": "cpu", "devices": 1, "max_epochs": epochs, "logger": logger, **progress}


def _check_earlier(folder: Path, seed: int) -> None:
    """Refuse to mix what two seeds or two sizes made."""
    readings = {name: [*reading] for name, reading in READINGS.items()}
    made = {
        "seed": seed,
        "articles": ARTICLES,
        "shape": SHAPE,
        "training": [readings, BATCH_SIZE, RATE, LENGTH, VERBMEM_TOKENS],
    }
    note = folder / "made.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != made:
        raise InputError(f"{folder} was made with other settings ({note}); remove it, or give another output.")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(made), encoding="utf-8")
