"""A base, and an actor that stands for the command line: it writes evaluations as a run would, in no time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.cli.main import main

Acted = Callable[..., int]
TARGET = 0.8


def write_base(folder: Path, seed: int = 0, **options: Any) -> Path:
    """A base for DiPO with data of its own a seed, and a log of the retain model."""
    data = {"data": f"data{seed}", "prompt": "plain", "seed": seed, "batch_size": 4}
    log = folder / "retain.json"
    aggregates = {"model_utility": 0.78, "forget_probability": 0.2}
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text(
        json.dumps({"format": "dipo-lightning/tofu/1", "settings": {}, "sets": {}, "aggregates": aggregates})
    )
    evaluation = {"class_path": "dipo_lightning.TOFUEvaluation", "init_args": {"retain_log": str(log)}}
    export = {"class_path": "dipo_lightning.callbacks.ExportModel", "init_args": {"folder": "models/unlearned"}}
    model = {
        "pretrained": "target",
        "beta": 0.1,
        "gamma": 2.0,
        "retain_loss": "kl",
        "reference": "live",
        "lora": {"rank": 4},
    }
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": 2, "callbacks": [evaluation, export]},
        "model": {"class_path": "dipo_lightning.DiPOModule", "init_args": model | {"reference_cache": "cache"}},
        "data": {"class_path": "dipo_lightning.TOFUDataModule", "init_args": data | options},
    }
    path = folder / "unlearn.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def evaluation(epoch: int, utility: float | None, log10_p: float | None, seed: int = 0) -> dict[str, Any]:
    """An evaluation's document, as short as can be."""
    quality = None if log10_p is None else {"p": 10**log10_p, "log10_p": log10_p, "d": 0.5, "n": 40}
    return {
        "format": "dipo-lightning/tofu/1",
        "settings": {"split": "forget10"},
        "provenance": {"epoch": epoch, "step": epoch * 5, "seed": seed, "method": "DiPOModule"},
        "sets": {},
        "aggregates": {"forget_quality": quality, "model_utility": utility, "forget_probability": 0.1 * epoch},
    }


def write_evaluations(folder: Path, documents: list[dict[str, Any]], name: str = "tofu") -> None:
    """Write documents where a run writes them, as the evaluation of that name does."""
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    for document in documents:
        made = document["provenance"]
        file = folder / "evaluations" / f"{name}_epoch={made['epoch']:03d}_step={made['step']:05d}.json"
        file.write_text(json.dumps(document))


def in_this_process(arguments: list[str], log: Path, lock: Any = None) -> int:
    """Stand for ``child.start`` without the seconds of a new process."""
    log.write_text("in this process\n")
    return main(arguments)


def actor(calls: list[list[str]]) -> Acted:
    """Stand for ``child.start``: GradAscent breaks down, small betas forget more and keep less."""

    def start(arguments: list[str], log: Path, lock: Any = None) -> int:
        calls.append(arguments)
        config = yaml.safe_load(Path(arguments[2]).read_text())
        folder, seed = Path(arguments[-1]), config["seed_everything"]
        options = config["model"]["init_args"]
        log.write_text(f"seed {seed}\n")
        if config["model"]["class_path"].endswith("GradAscentModule"):
            log.write_text("a warning\nerror: The loss is nan at step 3.\n")
            return 2
        beta = options.get("beta", 0.1)
        kept = [1.0, 0.9 + beta / 2, 0.93 + beta / 2]
        quality = [-8.0, -60 * beta, -40 * beta - seed / 10]
        pairs = zip(kept, quality, strict=True)
        write_evaluations(folder, [evaluation(n, TARGET * share, q, seed) for n, (share, q) in enumerate(pairs)])
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
        (folder / "checkpoints" / "finished").touch()
        return 0

    return start
