"""The causal language model itself, whatever peft has put around it."""

from __future__ import annotations

from typing import Any

from torch import nn


def causal_lm(model: nn.Module) -> Any:
    """Return the ``transformers`` model that a peft model is wrapped around, adapters in place; else ``model``.

    The wrapper hides what code needs that looks at a model as ``transformers`` made it: its config, its decoder, its
    defaults for generation. Told by the method rather than by the class, so that peft need not be imported.

    Args:
        model: A ``transformers`` causal LM, or a peft model around one; sharded or not.

    Returns:
        The model, no copy; typed loosely, because what it offers beside ``nn.Module`` comes with its family.
    """
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()
