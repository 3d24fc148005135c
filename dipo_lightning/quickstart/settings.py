"""Settings of the embedded examples: shape of the tiny model, and the training of each model."""

from __future__ import annotations

from typing import Any

AUTHORS = 80
TRAINING: dict[str, dict[str, Any]] = {
    "retain": {"start": "untrained", "train": "retain_training.json", "epochs": 2},
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
