"""A reference model that remembers its hidden states: what it returns, computes again, and keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dipo_lightning.models.answers import Answers, TokenBatch, collate
from dipo_lightning.models.head import decoder
from dipo_lightning.reference.references import LiveReference
from tests.helpers.toys import toy_model

ROWS: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, 7, 8, 2], "index": 0},
    {"input_ids": [5, 9, 2], "labels": [-100, 9, 2], "index": 1},
    {"input_ids": [5, 6, 7, 8, 2], "labels": [-100, -100, -100, 8, 2], "index": 2},
]


@pytest.fixture
def reference() -> LiveReference:
    """A reference that remembers; ``forwards`` lists the tokens of each forward pass."""
    made = LiveReference(toy_model().double())
    made.remember()
    whole, made.forwards = decoder(made.model).forward, []  # type: ignore[attr-defined]

    def counted(**inputs: Any) -> Any:
        made.forwards.append(inputs["input_ids"][0].tolist())  # type: ignore[attr-defined]
        return whole(**inputs)

    decoder(made.model).forward = counted  # type: ignore[method-assign]
    return made


def plain(parts: dict[str, TokenBatch]) -> dict[str, Answers]:
    return LiveReference(toy_model().double()).answers(parts)


def hidden(answers: Answers) -> Tensor:
    assert answers.hidden is not None
    return answers.hidden


def test_what_it_remembers_is_what_it_computed(reference: Any) -> None:
    parts = {"forget": collate([ROWS[0], ROWS[1]]), "retain": collate([ROWS[2]])}
    right, first, again = plain(parts), reference.answers(parts), reference.answers(parts)
    for part, answers in right.items():
        torch.testing.assert_close(hidden(first[part]), hidden(answers), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(first[part].logits, answers.logits, rtol=1e-10, atol=1e-12)
        assert torch.equal(hidden(again[part]), hidden(first[part]))
    assert len(reference.forwards) == 3, "nothing was computed twice"
    other = reference.answers({"retain": collate([ROWS[1], ROWS[0]], pad_token_id=3)})["retain"]
    assert torch.equal(hidden(other), hidden(first["forget"])[[3, 4, 0, 1, 2]]), "in another batch and part"
    assert len(reference.forwards) == 3


def test_a_masked_view_is_another_one(reference: Any) -> None:
    seen, blind = collate([ROWS[0]]), collate([ROWS[0]])
    blind["attention_mask"][0, 1] = 0
    whole, masked = reference.answers({"forget": seen})["forget"], reference.answers({"forget": blind})["forget"]
    assert not torch.allclose(hidden(whole), hidden(masked))
    torch.testing.assert_close(hidden(masked), hidden(plain({"forget": blind})["forget"]), rtol=1e-10, atol=1e-12)


def test_each_forward_is_of_one_sequence_without_padding(reference: Any) -> None:
    reference.answers({"forget": collate(ROWS)})
    assert reference.forwards == [row["input_ids"] for row in ROWS], "so the rounding depends on nothing else"


def test_no_more_is_kept_than_there_is_room_for(reference: Any) -> None:
    reference.remember(3 * reference.model.config.hidden_size * 8)
    batch = collate([ROWS[0], ROWS[1]])
    first, again = reference.answers({"forget": batch}), reference.answers({"forget": batch})
    assert torch.equal(hidden(first["forget"]), hidden(again["forget"]))
    assert reference.forwards == [ROWS[0]["input_ids"], ROWS[1]["input_ids"], ROWS[1]["input_ids"]]


def test_a_second_fit_starts_with_an_empty_memory(reference: Any) -> None:
    batch = {"forget": collate(ROWS)}
    reference.answers(batch)
    reference.stop_remembering()
    reference.answers(batch)
    assert len(reference.forwards) == 4, "three sequences, then one batch"
    reference.remember()
    reference.answers(batch)
    assert len(reference.forwards) == 7


def test_logits_are_not_remembered(reference: Any) -> None:
    batch = {"forget": collate([ROWS[0]])}
    for _ in range(2):
        assert reference.answers(batch, from_hidden=False)["forget"].hidden is None
    assert len(reference.forwards) == 2
