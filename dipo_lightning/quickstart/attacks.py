"""A short robustness check of the quickstart's models: other words, rounded weights, ten steps of relearning."""

from __future__ import annotations

from pathlib import Path

from dipo_lightning.benchmarks.robustness.quantization import Quantization
from dipo_lightning.benchmarks.robustness.relearning import Relearning
from dipo_lightning.benchmarks.robustness.wordings import Wordings
from dipo_lightning.cli.attack import attack

FORGET_ROWS = 20
STEPS = 10
LR = 1e-3
"""The rate that the tiny model was unlearned with: at the 2e-5 of large models it would learn nothing in ten steps."""


def attack_quickstart(folder: Path, seed: int) -> None:
    """Attack the unlearned, the retain and the target model of a quickstart, and print the table.

    Args:
        folder: The quickstart's folder, with ``data`` and ``models``.
        seed: Of the typing errors, the examples and the order of relearning.
    """
    models = folder / "models"
    attack(
        str(models / "unlearned"),
        retain=str(models / "retain"),
        target=str(models / "target"),
        data=str(folder / "data"),
        split="forget10",
        prompt="plain",
        output=str(folder / "attacks"),
        attacks=("wordings", "quantization", "relearning"),
        wordings=Wordings(few_shot=2, seed=seed),  # two examples fit the model's 256 positions
        quantization=Quantization(formats=("int8",)),
        relearning=Relearning(lr=LR, max_steps=STEPS, measured_at=(5,), seed=seed),
        max_rows=FORGET_ROWS,
        max_new_tokens=48,
        device="cpu",
    )
