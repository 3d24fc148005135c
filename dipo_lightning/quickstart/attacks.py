"""Short robustness check of the quickstart's models: rewordings, quantised weights, ten steps of relearning."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dipo_lightning.benchmarks.robustness.data import limited, read_subject
from dipo_lightning.benchmarks.robustness.quantization import Quantization
from dipo_lightning.benchmarks.robustness.relearning import Relearning
from dipo_lightning.benchmarks.robustness.running import attack_models, build_attacks, planned
from dipo_lightning.benchmarks.robustness.wordings import Wordings
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.models.loading import load_policy, load_tokenizer

MODELS = ("target", "unlearned", "retain")
FORGET_ROWS = 20
STEPS = 10
LR = 1e-3
"""Learning rate of the relearning; with the 2e-5 of large models the tiny model would learn nothing in ten steps."""


def attack_quickstart(folder: Path, seed: int) -> dict[str, Any]:
    """Attack the three models in a quickstart's folder, and return the log."""
    models = {name: str(folder / "models" / name) for name in MODELS}
    style = prompt_style("plain", load_tokenizer(models["unlearned"]))
    subject = limited(read_subject(style, str(folder / "data"), "forget10", None, None), None, FORGET_ROWS)
    subject = replace(subject, max_new_tokens=48)
    attacks = build_attacks(
        [
            Wordings(few_shot=2, seed=seed),  # two examples fit the model's 256 positions
            Quantization(formats=("int8",)),
            Relearning(lr=LR, max_steps=STEPS, measured_at=(5,), seed=seed),
        ]
    )
    loaders = {name: partial(load_policy, path) for name, path in models.items()}
    total = len(MODELS) * len(planned(attacks, subject))
    with tqdm(total=total, desc="attacks", leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        return attack_models(loaders, subject, attacks, folder / "attacks", say=lambda _: bar.update())
