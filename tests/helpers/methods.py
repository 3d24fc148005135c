"""Every method of the package, with what each needs on a toy model: a new one is tested without being listed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import dipo_lightning
from dipo_lightning.methods.unlearning import UnlearningModule

CLASSES: list[type[UnlearningModule]] = [
    cls
    for name, module in dipo_lightning.public_classes().items()
    if module.startswith("dipo_lightning.methods.")
    and issubclass(cls := getattr(dipo_lightning, name), UnlearningModule)
    and cls is not UnlearningModule
]
"""The public classes of unlearning methods."""

OPTIONS: dict[str, dict[str, Any]] = {
    "RMUModule": {"layer": 1},  # of two blocks
    "PDUModule": {"epsilon": 100.0},  # a toy's retain loss is high
}
"""Options without which a method does not fit a toy model."""


def options_of(cls: type[UnlearningModule]) -> dict[str, Any]:
    """The options that a method takes on a toy model."""
    return OPTIONS.get(cls.__name__, {})


def answer_logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, V) that predict a batch's supervised tokens, these tokens (N,), and the row of each (N,).

    From a forward of its own over whole rows, sharing nothing with the package.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    rows, places = (labels != -100).nonzero(as_tuple=True)
    return logits[rows, places], labels[rows, places], rows
