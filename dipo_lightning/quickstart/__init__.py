"""The embedded default: data, a model that knows it, unlearning, and the evidence, in a few minutes on a CPU."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.quickstart import settings
from dipo_lightning.quickstart.report import write_report


def quickstart(seed: int = 0, output: str = "runs/quickstart") -> None:
    """Unlearn fictitious authors from a tiny model, and show that it did.

    Makes data of invented authors, trains a tiny Llama on all of it (the target) and one without the part to forget
    (the retain model, the honest answer), unlearns that part with DiPO, and evaluates each epoch. No network.

    Args:
        seed: Seed of the data, the models and the training.
        output: Folder for everything it makes; an earlier run there is moved aside.
    """
    folder = Path(output)
    _move_aside(folder)
    started = time.monotonic()
    prepare(folder, seed)
    for name, train in (("target", "full.json"), ("retain", "retain90.json")):
        run("fit", folder / f"{name}.yaml", settings.finetuning(folder, train, name, seed), f"training: {name}")
    run("test", folder / "retain-log.yaml", settings.measuring(folder, "retain", seed), "evaluating: retain")
    shutil.copy(_evaluations(folder / "retain-log")[-1], folder / "retain.json")
    run("fit", folder / "unlearn.yaml", settings.unlearning(folder, seed), "unlearning with DiPO")
    write_report(folder, _evaluations(folder / "unlearned"), time.monotonic() - started)


def prepare(folder: Path, seed: int) -> None:
    """Write the data, and an untrained model with its tokenizer."""
    from dipo_lightning.quickstart.authors import write_fictitious
    from dipo_lightning.quickstart.model import train_tokenizer, write_untrained

    write_fictitious(folder / "data", seed=seed, authors=settings.AUTHORS)
    lines = (folder / "data" / "full.json").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    write_untrained(
        folder / "models" / "untrained", train_tokenizer(texts, settings.VOCABULARY), seed, **settings.SHAPE
    )


def run(command: str, path: Path, config: dict[str, Any], what: str) -> None:
    """Write ``config`` to ``path`` and run ``dipo-lightning COMMAND --config PATH``, in this process."""
    from dipo_lightning.cli.main import run_trainer

    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    print(f"\n=== {what}: dipo-lightning {command} --config {path}", flush=True)
    run_trainer([command, "--config", str(path)])


def _evaluations(run_folder: Path) -> list[Path]:
    """Return the evaluation logs of a run, first to last."""
    return sorted((run_folder / "run" / "evaluations").glob("*.json"))


def _move_aside(folder: Path) -> None:
    """Keep an earlier run: give its folder the next free number."""
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        return
    number = 1
    while (moved := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(moved)
    folder.mkdir()
    print(f"The earlier run in {folder} is kept as {moved}.")
