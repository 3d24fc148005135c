"""The reference that ``auto`` chooses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dipo_lightning.errors import InputError
from dipo_lightning.models.head import Head
from dipo_lightning.reference import references as choice


def module(rows: int, reference: str = "auto", lora: object = None, kept: int | None = None, epochs: int = 5) -> Any:
    data = SimpleNamespace(forget_examples=[{}] * rows, retain_examples=[{}] * (kept or 0))
    return SimpleNamespace(
        reference_name=reference,
        reference_parts=["forget"] if kept is None else ["forget", "retain"],
        retain_loss_name="kl",
        head=Head(torch.zeros(2, 2)),
        lora=lora,
        trainer=SimpleNamespace(datamodule=data, max_epochs=epochs),
    )


def test_a_large_forget_set_is_not_cached_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MOST_CACHED", 10)
    assert choice.choose_reference(module(10))[0] == "hidden_states"
    name, why = choice.choose_reference(module(11))
    assert name == "live"
    assert why == "caching 11 rows would hold up the first step; hidden_states does"
    assert choice.choose_reference(module(11, lora={"rank": 2}))[0] == "adapters_off"
    assert choice.choose_reference(module(11, "hidden_states"))[0] == "hidden_states"


def test_retain_rows_are_cached_where_a_live_reference_would_answer_as_many() -> None:
    assert choice.choose_reference(module(10, kept=90))[0] == "hidden_states"
    name, why = choice.choose_reference(module(10, kept=91))
    assert (name, why) == (
        "live",
        "a cache would take 101 rows, and 5 epochs without one take 100; hidden_states caches",
    )
    assert choice.choose_reference(module(10, kept=91, epochs=6))[0] == "hidden_states"
    assert choice.choose_reference(module(10, kept=91, epochs=-1))[0] == "hidden_states"
    assert choice.choose_reference(module(10, "hidden_states", kept=1000))[0] == "hidden_states"


def test_a_retain_term_of_another_layer_is_not_cached() -> None:
    other = module(10, "hidden_states", kept=10)
    other.retain_loss_name = "hidden"
    with pytest.raises(InputError, match="more of the reference than its last hidden states"):
        choice.choose_reference(other)
