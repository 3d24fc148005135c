"""Every method's loss and gradients from hidden states in chunks, against those from the logits of all positions."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dipo_lightning import DiPOModule, NPOModule, RMUModule, SelectiveModule, UNDIALModule, UnlearningModule
from dipo_lightning.models.answers import answer_hidden
from dipo_lightning.models.head import output_projection
from dipo_lightning.reference.references import HiddenStatesReference, LiveReference
from tests.helpers.methods import CLASSES
from tests.helpers.toys import VOCABULARY
from tests.methods.test_exactness import BATCH, InMemory, gradients, models

METHODS = [cls for cls in CLASSES if cls not in (DiPOModule, RMUModule, SelectiveModule)]
"""Those whose loss is one of logits and takes nothing but the batch; the others have such tests of their own."""
PARTS: Any = BATCH | {"alternative": {name: value.flip(0) for name, value in BATCH["forget"].items()}}


def made(cls: type[UnlearningModule], family: str, form: str, cached: bool = False, **options: Any) -> UnlearningModule:
    """A module whose policy has moved away from its reference."""
    module = cls("toy", form=form, chunk_size=3, **options)  # type: ignore[arg-type]
    policy, reference = models(family, torch.float64, frozen=False)
    trainer: Any = SimpleNamespace(global_step=5, log_every_n_steps=10**9, datamodule=None)
    module.policy, module._trainer = policy, trainer
    module.inspect(policy)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    if cached:
        with torch.no_grad():
            caches: Any = {"forget": InMemory(answer_hidden(reference, BATCH["forget"]))}
        module.frozen_reference = HiddenStatesReference(caches, output_projection(reference).detach())
    elif module.reference_parts:
        module.frozen_reference = LiveReference(reference)
    return module


def loss_and_gradients(module: UnlearningModule) -> tuple[Tensor, dict[str, Tensor]]:
    loss = module.training_step(PARTS, 0)
    return loss.detach(), gradients(loss, module.policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_both_forms_are_equal(cls: type[UnlearningModule], family: str) -> None:
    plain, chunked = made(cls, family, "logits"), made(cls, family, "hidden")
    assert chunked.from_hidden
    assert not plain.from_hidden
    (expected, right), (loss, found) = loss_and_gradients(plain), loss_and_gradients(chunked)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    assert found.keys() == right.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("cls", [NPOModule, UNDIALModule], ids=lambda cls: cls.__name__)
def test_both_forms_are_equal_with_a_cached_reference(cls: type[UnlearningModule]) -> None:
    live = loss_and_gradients(made(cls, "llama", "logits"))
    for form in ("logits", "hidden"):
        loss, found = loss_and_gradients(made(cls, "llama", form, cached=True))
        torch.testing.assert_close(loss, live[0], rtol=1e-10, atol=0)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, live[1][name], rtol=1e-7, atol=1e-10, msg=name)


class Watch(TorchDispatchMode):
    """Counts the rows of vocabulary size that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == VOCABULARY:
                self.alive += len(value)
                self.most = max(self.most, self.alive)
                weakref.finalize(value, self.released, len(value))
        return result

    def released(self, rows: int) -> None:
        self.alive -= rows


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_chunks_hold_less_of_vocabulary_size(cls: type[UnlearningModule]) -> None:
    most = {}
    for form in ("logits", "hidden"):
        module = made(cls, "llama", form)
        with Watch() as watch:
            module.training_step(PARTS, 0).backward()
        most[form] = watch.most
    assert 0 < most["hidden"] < most["logits"]
