"""Time to the first step and peak memory of each process, with 100,000 rows to forget and 1,000,000 to keep.

``python tools/benchmarks/large_sets.py [--processes 2] [--forget 100000] [--retain 1000000] [--folder FOLDER]`` makes
the files and a tiny model once, runs ``fit``'s data module and one step of `GradDiffModule` with a
`MemorizationEvaluation` before it, and prints one line of JSON per process. The clock runs from the start of the
process, imports included.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

START = time.monotonic()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import lightning.pytorch as pl  # noqa: E402

from dipo_lightning import GradDiffModule, UnlearningDataModule  # noqa: E402
from dipo_lightning.callbacks import MemorizationEvaluation  # noqa: E402
from dipo_lightning.evaluation.rows import Measuring  # noqa: E402

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


class FirstStep(pl.Callback):
    """Prints what it took to get there."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        found = {
            "process": trainer.global_rank,
            "seconds_to_first_step": round(time.monotonic() - START, 1),
            "cpu_seconds": round(time.process_time(), 1),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        }
        print(json.dumps(found), flush=True)


def write_rows(path: Path, name: str, count: int) -> None:
    """Questions and answers of some forty words, all different."""
    if path.is_file():
        return
    words = ("the", "town", "river", "book", "teacher", "garden", "window", "letter", "summer", "north", "old")
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            chosen = " ".join(words[(i >> shift) % len(words)] for shift in range(24))
            row = {
                "question": f"What does {name} {i} say of {chosen[:60]}?",
                "answer": f"{name} {i} says that {chosen}.",
            }
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path) -> None:
    """A tiny Llama with random weights and its tokenizer."""
    from dipo_lightning.quickstart.model import train_tokenizer, write_untrained

    if not folder.is_dir():
        texts = [f"Question: {line}" for line in (folder.parent / "forget.jsonl").open(encoding="utf-8")][:2000]
        write_untrained(folder, train_tokenizer(texts, 1024), 0, max_position_embeddings=512, **SHAPE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--forget", type=int, default=100_000)
    parser.add_argument("--retain", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/large-sets"))
    options = parser.parse_args()
    folder = options.folder / f"{options.forget}-{options.retain}"
    folder.mkdir(parents=True, exist_ok=True)
    made = (folder / "model").is_dir()
    write_rows(folder / "forget.jsonl", "Ada", options.forget)
    write_rows(folder / "retain.jsonl", "Ben", options.retain)
    write_model(folder / "model")
    if not made:
        print("The files are made; run the same command again to measure.", file=sys.stderr)
        return
    data = UnlearningDataModule(None, str(folder / "forget.jsonl"), str(folder / "retain.jsonl"), prompt="plain")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=options.processes,
        strategy="ddp" if options.processes > 1 else "auto",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        inference_mode=False,
        default_root_dir=folder,
        callbacks=[MemorizationEvaluation(measuring=Measuring(generate=False)), FirstStep()],
    )
    trainer.fit(GradDiffModule(str(folder / "model")), data)


if __name__ == "__main__":
    main()
