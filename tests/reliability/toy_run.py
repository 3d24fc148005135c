"""A small run as a command of its own: what is killed, and what is compared afterwards."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.helpers.toys import save_toy


def write_inputs(folder: Path, rows: int = 10) -> None:
    """The model and the rows that all runs share."""
    save_toy(folder / "model")
    for name, count in (("forget", rows), ("retain", rows + 3)):
        lines = [
            json.dumps({"question": f"Who is {name} {i}?", "answer": f"The {name} one {'very ' * (i % 4)}{i * 37}."})
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def write_config(folder: Path, run: Path, workers: int = 0, lora: bool = False, epochs: int = 4, seed: int = 1) -> Path:
    """Write a run's config; accumulation over two batches, an evaluation and a checkpoint every two steps."""
    evaluation = {"measuring": {"max_new_tokens": 6}, "schedule": {"every_n_steps": 2}}
    model: dict[str, Any] = {
        "pretrained": str(folder / "model"),
        "reference_cache": str(run.with_name(run.name + "-cache")),
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        "schedule": "linear",
    }
    if lora:
        model |= {"lora": {"rank": 2, "dropout": 0.3}}
    config = {
        "seed_everything": seed,
        "trainer": {
            "accelerator": "cpu", "max_epochs": epochs, "accumulate_grad_batches": 2,
            "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [
                {"class_path": "dipo_lightning.callbacks.MemorizationEvaluation", "init_args": evaluation},
                {"class_path": "dipo_lightning.callbacks.Checkpoint", "init_args": {"every_n_steps": 2}},
            ],
        },
        "model": {"class_path": "dipo_lightning.DiPOModule", "init_args": model},
        "data": {
            "class_path": "dipo_lightning.UnlearningDataModule",
            "init_args": {"forget": str(folder / "forget.jsonl"), "retain": str(folder / "retain.jsonl"),
                          "tokenizer": str(folder / "model"), "prompt": "plain", "batch_size": 2,
                          "num_workers": workers},
        },
        "run": str(run),
    }  # fmt: skip
    path = run.with_name(run.name + ".yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def command(config: str, trap: tuple[str, int] | None = None, environment: dict[str, str] | None = None) -> None:
    """Be ``dipo-lightning fit --config CONFIG`` in a process group of its own, with everything it prints in a log.

    Args:
        trap: Where to die, see `tests.reliability.traps`.
        environment: Variables to set.
    """
    os.environ.update(environment or {})
    os.setsid()
    log = os.open(Path(config).with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as without the server
    from dipo_lightning.cli.main import main
    from tests.reliability.traps import set_trap

    if trap is not None:
        set_trap(*trap)
    sys.exit(main(["fit", "--config", config]))


def run_here(config: Path) -> None:
    """Be the command in this process.

    Raises:
        RuntimeError: It failed.
    """
    from dipo_lightning.cli.main import main

    if code := main(["fit", "--config", str(config)]):
        raise RuntimeError(f"the run ended with code {code}")


def start(config: Path, trap: tuple[str, int] | None = None, environment: dict[str, str] | None = None) -> Any:
    """Start the command; a server that has imported everything forks it, so that a start takes no seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.reliability.imports"])
    process = context.Process(target=command, args=(str(config), trap, environment))
    process.start()
    return process


def warm_up() -> None:
    """Wait until the server has imported everything, so that it isn't counted as a part of the first run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.reliability.imports"])
    process = context.Process(target=int)
    process.start()
    process.join()


def outcome(run: Path) -> dict[str, Any]:
    """Result of a run: weights, evaluations without times and places, and every scalar of every step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    evaluations = {}
    for path in sorted((run / "evaluations").glob("*.json")):
        document = json.loads(path.read_text())
        document["provenance"] = comparable(document["provenance"])
        evaluations[path.name] = document
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {"weights": saved["state_dict"], "optimizer": saved["optimizer_states"], "evaluations": evaluations,
            "scalars": {tag: points for tag, points in scalars.items() if "seconds" not in tag}}  # fmt: skip


def comparable(provenance: dict[str, Any]) -> dict[str, Any]:
    """Leave out what two runs of one command may differ in: how long it took, where it wrote, who loaded the rows."""
    kept = {name: value for name, value in provenance.items() if name != "seconds"}
    config = json.loads(json.dumps(kept["config"]))
    for section, name in (("", "run"), ("trainer", "default_root_dir"), ("trainer", "logger"),
                          ("model", "reference_cache"), ("data", "num_workers")):  # fmt: skip
        part = config.get(section, config)
        part.get("init_args", part).pop(name)
    return kept | {"config": config}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Name what differs between two outcomes, bit for bit."""
    found = []
    if one["weights"].keys() != other["weights"].keys() or not all(
        torch.equal(value, other["weights"][name]) for name, value in one["weights"].items()
    ):
        found.append("weights")
    if str(one["optimizer"]) != str(other["optimizer"]):
        found.append("optimizer")
    if one["evaluations"] != other["evaluations"]:
        found.append("evaluations")
    odd = [tag for tag in one["scalars"].keys() | other["scalars"].keys()
           if repr(one["scalars"].get(tag)) != repr(other["scalars"].get(tag))]  # fmt: skip
    return found + [f"events {tag}" for tag in sorted(odd)[:3]]
