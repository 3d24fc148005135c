"""The states of every random generator as plain values, so that dropout goes on where an interrupted run left it."""

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's, torch's and this process's GPU's generators: tensors and plain values.

    A checkpoint that is loaded with ``weights_only`` can hold nothing else.
    """
    version, words, normal = random.getstate()
    state: Any = np.random.get_state()
    name, keys, position, has_normal, cached = state
    return {
        "python": [version, torch.tensor(words), normal],
        "numpy": [str(name), torch.tensor(keys.astype(np.int64)), int(position), int(has_normal), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put every generator of this process into the states that `random_states` returned."""
    version, words, normal = states["python"]
    random.setstate((version, tuple(words.tolist()), normal))
    name, keys, position, has_normal, cached = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_normal, cached))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
