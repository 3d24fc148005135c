"""Quickstart: made-up data, a model that knows it, unlearning and the results, in a few minutes on a CPU."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dipo_lightning.cli import STEP, child
from dipo_lightning.cli.configs import filled
from dipo_lightning.errors import InputError, RunError, check_seed
from dipo_lightning.evaluation.logs import evaluations_of_runs
from dipo_lightning.evaluation.run_folder import move_aside
from dipo_lightning.quickstart import settings
from dipo_lightning.quickstart.attacks import attack_quickstart
from dipo_lightning.quickstart.report import write_report
from dipo_lightning.safety.paths import expanded


def quickstart(seed: int = 0, output: str = "runs/quickstart") -> None:
    """Unlearn fictitious authors from a tiny model, and show the result.

    Makes data about invented authors, trains a tiny Llama without the forget set (the retain model), teaches it the
    forget set as well (the target), unlearns that with DiPO, evaluates during training, and attacks the result. Needs
    no network.

    Args:
        seed: Seed of the data, the models and the training.
        output: Folder of all results; an earlier run there is moved aside.
    """
    check_seed("seed", seed)
    folder = expanded(output, "output")
    _make_folder(folder)
    started = time.monotonic()
    with step(1, "Invent authors, and train a model that never saw those to forget: the retain model"):
        prepare(folder, seed)
        train(folder, "retain", seed)
        shutil.copy(measure_retain(folder, seed), folder / "retain.json")
    with step(2, "Teach it those to forget as well: the target model"):
        train(folder, "target", seed)
    with step(3, "Make the target model forget with DiPO, and evaluate as it goes"):
        config = filled("quickstart/configs/unlearning", folder=str(folder), seed=seed)
        child.write_config(folder / "unlearn.yaml", elsewhere(config))  # for repeating the run; the base of comparisons
        child.fit(config, folder / "unlearned")
    with step(4, "Try to get it back: other words, rounded weights, ten steps of relearning"):
        attacked = attack_quickstart(folder, seed)
    write_report(folder, evaluations(folder / "unlearned"), attacked, time.monotonic() - started)


def elsewhere(config: dict[str, Any]) -> dict[str, Any]:
    """Copy a configuration for other runs: each exports its model into its own folder."""
    copied = copy.deepcopy(config)
    for callback in copied["trainer"]["callbacks"]:
        if callback["class_path"].endswith(".ExportModel"):
            del callback["init_args"]
    return copied


@contextmanager
def step(number: int, title: str) -> Iterator[None]:
    """Print the title and the duration of a step, whose child processes show progress bars only."""
    print(f"{number}/4  {title}", flush=True)
    started, before = time.monotonic(), os.environ.get(STEP)
    os.environ[STEP] = "1"
    try:
        yield
    finally:
        os.environ.pop(STEP)
        if before is not None:
            os.environ[STEP] = before
    print(f"      {time.monotonic() - started:.0f} s", flush=True)


def train(folder: Path, name: str, seed: int) -> None:
    """Train the retain model or the target, as `settings.TRAINING` says, and export it as ``models/NAME``."""
    config = filled(
        "quickstart/configs/finetuning", folder=str(folder), name=name, seed=seed, **settings.TRAINING[name]
    )
    child.fit(config, folder / name)


def measure_retain(folder: Path, seed: int) -> Path:
    """Evaluate the retain model, and return the path of its log."""
    config = filled("quickstart/configs/unlearning", folder=str(folder), seed=seed)
    config["model"]["init_args"]["pretrained"] = str(folder / "models" / "retain")
    evaluation = config["trainer"]["callbacks"][0]
    del evaluation["init_args"]["retain_log"]
    config["trainer"] |= {"callbacks": [evaluation], "logger": logger_in(folder / "retain-log")}
    return test(config, folder / "retain-log")


def logger_in(folder: Path) -> dict[str, Any]:
    """Return the configuration of a logger that makes ``folder`` the run folder."""
    options = {"save_dir": str(folder), "name": "", "version": ""}
    return {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": options}


def test(config: dict[str, Any], folder: Path) -> Path:
    """Run ``test`` with a configuration that writes into ``folder``, and return its evaluation."""
    child.write_config(folder.with_suffix(".yaml"), config)
    if child.start(["test", "--config", str(folder.with_suffix(".yaml"))]):
        raise RunError(f"The evaluation in {folder} failed (see above).")
    return evaluations(folder)[-1]


def evaluations(run_folder: Path) -> list[Path]:
    """Return the evaluations of a run, first to last."""
    return evaluations_of_runs((run_folder / "evaluations").glob("*.json"))


def prepare(folder: Path, seed: int) -> None:
    """Write the data, and an untrained model with its tokenizer."""
    from dipo_lightning.quickstart.authors import write_fictitious
    from dipo_lightning.quickstart.model import train_tokenizer, write_untrained

    write_fictitious(folder / "data", seed=seed, authors=settings.AUTHORS)
    files = sorted((folder / "data").glob("*.json"))
    files = [file for file in files if not file.stem.endswith("_training")]  # these repeat rows of the others
    rows: list[dict[str, Any]] = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    texts = [f"Question: {row['question']}\nAnswer: " for row in rows]
    for row in rows:
        texts += [row["answer"], row.get("paraphrased_answer", ""), *row.get("perturbed_answer", [])]
    write_untrained(folder / "models" / "untrained", train_tokenizer(texts), seed, **settings.SHAPE)


def _make_folder(folder: Path) -> None:
    """Make the folder of the run, after moving an earlier run there aside.

    Raises:
        InputError: The folder holds something else.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "models" / "untrained").is_dir():
            raise InputError(f"{folder} has files that are not of a quickstart. Give another --output.")
        print(f"The earlier run in {folder} is kept as {move_aside(folder)}.")
    folder.mkdir(parents=True, exist_ok=True)
