"""The command ``attack``: attempts to get forgotten knowledge back, and the same on models that never had it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from dipo_lightning.benchmarks.robustness.attack import Attack
from dipo_lightning.benchmarks.robustness.prefixes import Prefixes
from dipo_lightning.benchmarks.robustness.quantization import Quantization
from dipo_lightning.benchmarks.robustness.relearning import Relearning
from dipo_lightning.benchmarks.robustness.sampling import Sampling
from dipo_lightning.benchmarks.robustness.wordings import Wordings
from dipo_lightning.data.prompts import PromptName
from dipo_lightning.errors import InputError

WORDINGS, PREFIXES, QUANTIZATION = Wordings(), Prefixes(), Quantization()
SAMPLING, RELEARNING = Sampling(), Relearning()
ATTACKS = ("wordings", "prefixes", "quantization", "sampling", "relearning")


def attack(
    unlearned: str,
    retain: str | None = None,
    target: str | None = None,
    data: str | None = None,
    split: str | None = None,
    forget: str | None = None,
    kept: str | None = None,
    unrelated: str | None = None,
    prompt: PromptName | None = None,
    output: str | None = None,
    attacks: tuple[str, ...] = ATTACKS,
    wordings: Wordings = WORDINGS,
    prefixes: Prefixes = PREFIXES,
    quantization: Quantization = QUANTIZATION,
    sampling: Sampling = SAMPLING,
    relearning: Relearning = RELEARNING,
    further: dict[str, Any] | None = None,
    max_rows: int | None = None,
    max_new_tokens: int | None = None,
    generation_rows: int = 64,
    device: str | None = None,
) -> None:
    """Attack an unlearned model, and the retain model and the target where they are given; they are only read.

    A table is printed; the folder of the results holds it, every row (``robustness.json``, which ``score`` recomputes)
    and a picture of each attack. The same command goes on where it was cut off.

    Args:
        unlearned: A model (hub name or folder), or the folder of a run, whose exported model and data are taken.
        retain: The model that was trained without the forget set; R needs it.
        target: The model that knows the forget set.
        data: A data set in TOFU's schema (with ``split``) or MUSE's: hub name or folder.
        split: TOFU's forget split, ``forget10``.
        forget: In place of ``data``, a file of your own rows that were to be forgotten.
        kept: A file of your own rows that were kept.
        unrelated: A text file to relearn on, texts parted by blank lines.
        prompt: Prompt style that was unlearned with; default is the run's, or chat.
        output: Folder of the results; default is ``attacks`` in the run's folder or beside the model.
        attacks: The attacks to make.
        wordings: Other words for the questions.
        prefixes: Begun answers.
        quantization: Rounded weights.
        sampling: Many answers at temperature 1.
        relearning: Fine-tuning of a copy.
        further: Attacks of your own by name: a class path, or ``class_path`` with ``init_args``.
        max_rows: Most forget rows, spread evenly over all.
        max_new_tokens: Most tokens of an answer; default is the benchmark's (TOFU 200, MUSE 32).
        generation_rows: Most rows of a generation batch.
        device: Such as ``cuda``; default is a GPU where there is one.
    """
    from dataclasses import replace

    import torch

    from dipo_lightning.benchmarks.robustness.data import limited, read_subject, subject_of
    from dipo_lightning.benchmarks.robustness.running import attack_models, build_attacks
    from dipo_lightning.benchmarks.robustness.tables import markdown_table
    from dipo_lightning.data.prompts import prompt_style
    from dipo_lightning.models.loading import load_policy, load_tokenizer

    own: dict[str, Attack] = {
        "wordings": wordings,
        "prefixes": prefixes,
        "quantization": quantization,
        "sampling": sampling,
        "relearning": relearning,
    }
    for name in attacks:
        if name not in own:
            raise InputError(f"There is no attack {name!r}; there are {', '.join(own)}. Your own go into `further`.")
    run = run_settings(Path(unlearned).expanduser())
    model = str(run.get("model", unlearned))
    style = prompt_style(
        prompt or run.get("prompt") or "chat",
        load_tokenizer(model),
        **({} if prompt else run.get("prompt_options") or {}),
    )
    if data is None and forget is None and "module" in run:
        run["module"].read()
        subject = subject_of(run["module"], style)
    else:
        subject = read_subject(style, data, split, forget, kept)
    subject = limited(subject, unrelated, max_rows)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    subject = replace(
        subject,
        max_new_tokens=max_new_tokens or subject.max_new_tokens,
        generation_rows=generation_rows,
        device=place,
    )
    sources = {"unlearned": model, "retain": retain, "target": target}

    def load(source: str) -> Any:
        return load_policy(source).to(place)  # type: ignore[arg-type]

    document = attack_models(
        {name: partial(load, source) for name, source in sources.items() if source is not None},
        subject,
        build_attacks([own[name] for name in attacks], further),
        folder := Path(output) if output is not None else _beside(Path(unlearned).expanduser(), model),
        run.get("provenance"),
    )
    if "evaluations" in run:
        from dipo_lightning.evaluation.run_folder import write_json

        where = document["provenance"]
        name = f"robustness_epoch={where['epoch']:03d}_step={where['step']:05d}_attack.json"
        write_json(run["evaluations"] / name, document)
    if "retain" not in document["settings"]["models"]:
        print("No retain model was given: a number says more beside that of a model that never knew (retain=...).")
    print(f"{markdown_table(document)}\n\nEvery row, the table and the pictures: {folder}")


def run_settings(folder: Path) -> dict[str, Any]:
    """Return what a run's folder says of its model and data; nothing for a model."""
    import yaml
    from lightning.pytorch import LightningDataModule

    from dipo_lightning.evaluation.benchmark import import_class

    evaluations = folder / "evaluations"
    if not evaluations.is_dir():
        return {}
    config_file = folder / "config.yaml"
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    model = next((path.parent for path in sorted(folder.glob("*/config.json"))), None)
    if model is None:
        raise InputError(
            f"{folder} is a run without an exported model: `dipo-lightning export` its checkpoint, and give that."
        )
    options = (config.get("data") or {}).get("init_args") or {}
    documents = sorted(evaluations.glob("*.json"), key=lambda path: path.stat().st_mtime)
    provenance = json.loads(documents[-1].read_text(encoding="utf-8"))["provenance"] if documents else {}
    found = {"model": model, "provenance": provenance, "evaluations": evaluations}
    if kind := (config.get("data") or {}).get("class_path"):
        found["module"] = import_class(kind, LightningDataModule)(**options)
    return found | {name: options.get(name) for name in ("prompt", "prompt_options")}


def _beside(given: Path, model: str) -> Path:
    if (given / "evaluations").is_dir():
        return given / "attacks"
    return Path(f"{model.rstrip('/').rpartition('/')[2]}-attacks")
