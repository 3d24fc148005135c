"""The reference that ``auto`` chooses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dipo_lightning.models.head import Head
from dipo_lightning.reference import references as choice


def module(rows: int, reference: str = "auto", lora: object = None) -> Any:
    data = SimpleNamespace(forget_examples=[{}] * rows)
    return SimpleNamespace(
        reference_name=reference,
        reference_parts=["forget"],
        head=Head(torch.zeros(2, 2)),
        lora=lora,
        trainer=SimpleNamespace(datamodule=data),
    )


def test_a_large_forget_set_is_not_cached_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MOST_CACHED", 10)
    assert choice.choose_reference(module(10))[0] == "hidden_states"
    name, why = choice.choose_reference(module(11))
    assert name == "live"
    assert why == "caching 11 forget rows would hold up the first step; hidden_states does"
    assert choice.choose_reference(module(11, lora={"rank": 2}))[0] == "adapters_off"
    assert choice.choose_reference(module(11, "hidden_states"))[0] == "hidden_states"
