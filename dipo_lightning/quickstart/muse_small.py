"""MUSE in small: a made-up newspaper, a tiny model that has read all of it, and one that never saw the part to forget.

What `configs/muse/small.yaml` starts from: no network, and no text of anybody's.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

from dipo_lightning.cli import child
from dipo_lightning.errors import InputError
from dipo_lightning.quickstart import settings, test
from dipo_lightning.quickstart.settings import filled, shipped

ARTICLES = 6
VOCABULARY = 512
SHAPE = settings.SHAPE | {"max_position_embeddings": 1024}
FORGOTTEN, KEPT = "scal/forget_4", ("train/retain1", "train/retain2")


class Reading(NamedTuple):
    """Training by which a model comes to know its part of the corpus.

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
            values = {"name": name, "seed": seed, "start": reading.start, "epochs": reading.epochs}
            print(f"\n=== training: {name}", flush=True)
            child.fit(filled("muse_training", folder=str(folder), **values), folder / f"making-{name}")
            (folder / "making" / name).rename(folder / name)
    if not (folder / "retain.json").is_file():
        config = filled("muse_measuring", folder=str(folder), seed=seed)
        log = test(config, folder / "measuring-retain")
        shutil.copy(log, folder / "retain.json")
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


def _check_earlier(folder: Path, seed: int) -> None:
    """Refuse to mix what two seeds or two sizes made."""
    readings = {name: [*reading] for name, reading in READINGS.items()}
    made = {
        "seed": seed,
        "articles": ARTICLES,
        "shape": SHAPE,
        "training": [readings, *(shipped(name) for name in ("muse_training", "muse_measuring"))],
    }
    note = folder / "made.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != made:
        raise InputError(f"{folder} was made with other settings ({note}); remove it, or give another output.")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(made), encoding="utf-8")
