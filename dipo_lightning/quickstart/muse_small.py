"""Small version of MUSE: an invented newspaper, a tiny model trained on all of it, and one without the forget set.

These are the inputs of `configs/muse/small.yaml`; no network and no copyrighted text is needed.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from dipo_lightning.cli import child
from dipo_lightning.cli.configs import filled, read_template
from dipo_lightning.data.files import file_records, json_lines
from dipo_lightning.errors import InputError, check_seed
from dipo_lightning.evaluation.run_folder import write_json
from dipo_lightning.quickstart import settings, test
from dipo_lightning.safety.paths import expanded

TRAINING, MEASURING = "quickstart/configs/muse_training", "quickstart/configs/muse_measuring"
ARTICLES = 6
VOCABULARY = 512
SHAPE = settings.SHAPE | {"max_position_embeddings": 1024}
FORGOTTEN, KEPT = "scal/forget_4", ("train/retain1", "train/retain2")


class Reading(NamedTuple):
    """Training of a model on its part of the corpus.

    Attributes:
        start: Name of the initial model.
        epochs: Passes over the texts.
        orders: Number of differently ordered copies of each part in an epoch; with a single order a model learns which
            text comes next instead of the answers.
    """

    start: str
    epochs: int
    orders: dict[str, int]


READINGS = {
    "retain": Reading("untrained", 4, dict.fromkeys(KEPT, 10)),
    "target": Reading("retain", 3, {FORGOTTEN: 8, **dict.fromkeys(KEPT, 6)}),
}
"""The retain model is trained on the retain set only; the target continues from there on the whole corpus."""


def muse_small(output: str = "runs/muse-small", seed: int = 0) -> None:
    """Make a small corpus in MUSE's schema, a target trained on it, and a retain model without the forget set.

    Writes ``news`` (the corpus), ``target``, ``retain`` and ``retain.json`` (its evaluation) into the folder; existing
    parts are kept. Then run: dipo-lightning fit --config muse/small

    Args:
        output: Folder of all results.
        seed: Seed of the corpus, the models and the training.
    """
    check_seed("seed", seed)
    folder = expanded(output, "output")
    _check_earlier(folder, seed)
    prepare(folder, seed)
    for name, reading in READINGS.items():
        if not (folder / name).is_dir():
            write_reading(folder, name, reading, seed)
            values = {"name": name, "seed": seed, "start": reading.start, "epochs": reading.epochs}
            print(f"\n=== training: {name}", flush=True)
            child.fit(filled(TRAINING, folder=str(folder), **values), folder / f"making-{name}")
            (folder / "making" / name).rename(folder / name)
    if not (folder / "retain.json").is_file():
        config = filled(MEASURING, folder=str(folder), seed=seed)
        log = test(config, folder / "measuring-retain")
        shutil.copy(log, folder / "retain.json")
    print(f"{folder} has the corpus, the target and the retain model with its log.")


def prepare(folder: Path, seed: int) -> None:
    """Write the corpus, and an untrained model with its tokenizer."""
    from dipo_lightning.benchmarks.muse.data import forget_texts, load_muse
    from dipo_lightning.quickstart.model import train_tokenizer, write_untrained
    from dipo_lightning.quickstart.newspaper import write_fictitious_news

    write_fictitious_news(folder / "news", seed, ARTICLES)
    corpus = load_muse(folder / "news")
    rows = forget_texts(folder / "news", FORGOTTEN) + corpus.train_retain + corpus.retain2
    tokenizer = train_tokenizer([row["text"] for row in rows], VOCABULARY)
    write_untrained(folder / "untrained", tokenizer, seed, **SHAPE)


def write_reading(folder: Path, name: str, reading: Reading, seed: int) -> None:
    """Write the training texts of a model: articles and single questions of its parts, in random orders."""
    rng = random.Random(seed)
    texts: list[str] = []
    for part, orders in reading.orders.items():
        records = file_records(folder / "news" / f"{part}.jsonl")
        texts += [unit for record in records for unit in record.fields["text"].split("\n\n")] * orders
    rng.shuffle(texts)
    lines = json_lines({"text": text} for text in texts)
    (folder / f"reading-{name}.jsonl").write_text(lines, encoding="utf-8")


def _check_earlier(folder: Path, seed: int) -> None:
    """Refuse a folder that was made with other settings."""
    readings = {name: [*reading] for name, reading in READINGS.items()}
    made = {
        "seed": seed,
        "articles": ARTICLES,
        "shape": SHAPE,
        "training": [readings, read_template(TRAINING), read_template(MEASURING)],
    }
    note = folder / "made.json"
    if note.is_file() and _read(note) != made:
        raise InputError(f"{folder} was made with other settings ({note}); remove it, or give another output.")
    write_json(note, made)


def _read(note: Path) -> Any:
    """Return the contents of a JSON file; None if it is damaged."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        return None
