"""The reference that ``auto`` chooses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dipo_lightning.errors import InputError
from dipo_lightning.models.head import Head
from dipo_lightning.reference import references as choice


def module(
    rows: int, reference: str = "auto", lora: object = None, kept: int | None = None, width: int = 2, **limits: int
) -> Any:
    data = SimpleNamespace(
        forget_examples=[{"labels": [-100, 1]}] * rows,
        retain_examples=[{"labels": [-100, 1]}] * (kept or 0),
        batch_size=4,
    )
    trainer = {"max_epochs": 5, "max_steps": -1, "accumulate_grad_batches": 2, "world_size": 1} | limits
    return SimpleNamespace(
        reference_name=reference,
        reference_parts=["forget"] if kept is None else ["forget", "retain"],
        retain_loss_name="kl",
        head=Head(torch.zeros(2, width)),
        lora=lora,
        policy_is_pretrained=True,
        trainer=SimpleNamespace(datamodule=data, **trainer),
    )


def test_a_large_forget_set_is_not_cached_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MOST_CACHED", 10)
    assert choice.choose_reference(module(10))[0] == "hidden_states"
    name, why = choice.choose_reference(module(11))
    assert name == "live"
    assert why == "caching 11 rows would hold up the first step; hidden_states does"
    assert choice.choose_reference(module(11, lora={"rank": 2}))[0] == "adapters_off"
    assert choice.choose_reference(module(11, "hidden_states"))[0] == "hidden_states"


def test_what_would_take_too_much_space_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MOST_BYTES", 10 * 4 * 8)
    assert choice.choose_reference(module(10, width=8))[0] == "hidden_states"
    assert choice.choose_reference(module(10, width=9)) == ("live", "the cache would take 0.0 GB; hidden_states caches")
    assert choice.choose_reference(module(10, "hidden_states", width=9))[0] == "hidden_states"


def test_retain_rows_are_cached_where_a_live_reference_would_answer_as_many() -> None:
    assert choice.choose_reference(module(10, kept=90))[0] == "hidden_states"
    name, why = choice.choose_reference(module(10, kept=91))
    assert name == "live"
    assert why == "a cache needs forward passes of 101 rows, a live model of 100 in the run; hidden_states caches"
    assert choice.choose_reference(module(10, kept=91, max_epochs=6))[0] == "hidden_states"
    assert choice.choose_reference(module(10, kept=91, max_epochs=-1))[0] == "hidden_states", "no limit is known"
    assert choice.choose_reference(module(10, kept=91, max_epochs=-1, max_steps=6))[0] == "live", "2 x 6 x 4 x 2 rows"
    assert choice.choose_reference(module(10, kept=86, max_epochs=-1, max_steps=6))[0] == "hidden_states"
    assert choice.choose_reference(module(10, "hidden_states", kept=1000))[0] == "hidden_states"
    own = module(10, kept=91, max_epochs=-1, max_steps=6)
    del own.trainer.datamodule.batch_size
    assert choice.choose_reference(own)[0] == "hidden_states", "a user's data module without batch_size: none is known"
    only = module(10, kept=91)
    only.reference_parts = ["retain"]
    assert choice.choose_reference(only)[0] == "hidden_states", "a live one answers the forget rows with them"


def test_a_retain_term_of_another_layer_is_not_cached() -> None:
    other = module(10, "hidden_states", kept=10)
    other.retain_loss_name = "hidden"
    with pytest.raises(InputError, match="more of the reference than its last hidden states"):
        choice.choose_reference(other)
