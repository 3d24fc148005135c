"""Noise that a model's own configuration asks for in training: dropout (GPT-2, OPT, Phi-2), jitter (Phi-MoE)."""

from __future__ import annotations

import copy
import re
from types import MethodType
from typing import Any

from torch import nn

from dipo_lightning.models.head import causal_lm

_OF_OTHER_HEADS = ("classifier", "summary")
_JITTER = re.compile("jitter")
_NOISE = re.compile(f"drop|{_JITTER.pattern}")


def dropout_rates(model: nn.Module, switch_off: bool = False) -> dict[str, float]:
    """Find every rate of dropout and jitter above 0: of dropout modules, and those that modules read as numbers.

    The causal LM's configuration, which an export writes, stays as it is; the modules inside it get a copy, for some
    families read the rates there in every forward. A router with jitter (Phi-MoE) draws its experts in training, and
    the number also counts in evaluation: it stays, and so does the router in evaluation mode.

    Args:
        model: A ``transformers`` causal LM without adapters.
        switch_off: Set the rates of dropout to 0, and keep what has jitter in evaluation mode, in place.

    Returns:
        The rates that there were, by name.
    """
    root = causal_lm(model)
    found = rates(root.config)
    without = copy.deepcopy(root.config)
    for name in found:
        if not _JITTER.search(name):
            setattr(without, name, 0.0)
    for path, module in root.named_modules():
        for name, value in rates(module).items():
            found[path.rpartition(".")[2] if name == "p" else name] = value
            if switch_off and _JITTER.search(name):
                module.train = MethodType(_stay_in_evaluation, module)
                module.train()
            elif switch_off:
                setattr(module, name, 0.0)
        if switch_off and found and module is not root and getattr(module, "config", None) is root.config:
            module.config = without
    return {name: value for name, value in found.items() if not name.startswith(_OF_OTHER_HEADS)}


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    """Take the place of ``module.train``."""
    return nn.Module.train(module, False)


def rates(owner: Any) -> dict[str, float]:
    """Return the rates above 0 among the attributes of a configuration or a module."""
    known = isinstance(owner, nn.modules.dropout._DropoutNd)
    return {
        name: value
        for name, value in vars(owner).items()
        if isinstance(value, float) and value > 0 and (_NOISE.search(name) or (known and name == "p"))
    }
