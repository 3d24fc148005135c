"""Settings of the embedded examples: shape of the tiny model, and the configurations of their runs."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import yaml

Config = dict[str, Any]

AUTHORS = 80
TRAINING: dict[str, dict[str, Any]] = {
    "retain": {"start": "untrained", "train": "retain_training.json", "epochs": 4},
    "target": {"start": "retain", "train": "full_training.json", "epochs": 1},
}
"""Initial model, data file and number of epochs of each model's training."""
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def shipped(template: str) -> Config:
    """Return a shipped configuration, with its placeholders."""
    text = files("dipo_lightning.quickstart").joinpath("configs", f"{template}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def filled(template: str, /, **values: Any) -> Config:
    """Return the shipped configuration ``template`` with its ``{placeholders}`` filled in.

    A text that consists of a single placeholder becomes the value itself.
    """

    def fill(part: Any) -> Any:
        """Return a part of the configuration with its placeholders filled in."""
        if isinstance(part, dict):
            return {key: fill(item) for key, item in part.items()}
        if isinstance(part, list):
            return [fill(item) for item in part]
        if not isinstance(part, str):
            return part
        whole = re.fullmatch(r"\{(\w+)\}", part)
        return values[whole[1]] if whole else part.format(**values)

    return fill(shipped(template))
