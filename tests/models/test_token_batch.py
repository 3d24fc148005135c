"""Batches: padding, masks from the lengths, which positions are supervised, and which rows run together."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

import dipo_lightning.models.answers as module
from dipo_lightning.models.answers import (
    TokenBatch,
    answer_hidden,
    collate,
    length_groups,
    supervised_labels,
    supervised_positions,
    supervised_sequences,
    used_lengths,
)
from dipo_lightning.models.head import decoder
from tests.helpers.families import SIZES, family_model
from tests.helpers.toys import toy_model

EXAMPLES = [
    {"input_ids": [5, 6, 7, 2], "labels": [-100, -100, 7, 2], "index": 9},
    {"input_ids": [5, 2], "labels": [-100, 2], "index": 3},
]


def test_right_padding_with_the_mask_from_lengths_when_pad_is_eos():
    batch = collate(EXAMPLES, pad_token_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [5, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 2], [-100, 2, -100, -100]]
    assert batch["index"].tolist() == [9, 3]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_supervised_positions_predict_the_supervised_labels_row_by_row():
    labels = collate(EXAMPLES, pad_token_id=0)["labels"]
    positions = supervised_positions(labels)
    assert positions.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert supervised_labels(labels).tolist() == [7, 2, 2]
    assert supervised_sequences(labels).tolist() == [0, 0, 1]
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 7, 2, 0], [2, 0, 0, 0]]), 8)
    assert logits[positions].argmax(-1).tolist() == supervised_labels(labels).tolist()


def test_a_supervised_first_token_is_not_selected():
    labels = torch.tensor([[4, 5]])
    assert supervised_labels(labels).tolist() == [5]
    assert supervised_positions(labels).tolist() == [[True, False]]


@pytest.mark.parametrize("cost", [0, 3, 10, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_groups_need_fewer_tokens(cost, seed, monkeypatch):
    monkeypatch.setattr(module, "FORWARD_TOKENS", cost)
    draw = random.Random(seed)
    lengths = [draw.randint(1, 20) for _ in range(5)]
    groups = length_groups(lengths)
    assert sorted(itertools.chain(*groups)) == list(range(5))
    assert all(group == sorted(group) for group in groups)

    def tokens(groups):
        return sum(len(group) * max(lengths[row] for row in group) + cost for group in groups)

    every = itertools.product(range(5), repeat=5)  # each row's group
    others = ([[row for row in range(5) if of[row] == group] for group in set(of)] for of in every)
    assert tokens(groups) == min(map(tokens, others))
    assert len(groups) == 1 or cost < 10**6


def of_lengths(*lengths: int) -> TokenBatch:
    """Rows of some lengths, whose second half is supervised; in the third row a token in the middle is masked."""
    draw = random.Random(1)
    rows = [[draw.randint(5, 60) for _ in range(length)] for length in lengths]
    labels = [[-100] * (len(ids) // 2) + ids[len(ids) // 2 :] for ids in rows]
    batch = collate([{"input_ids": a, "labels": b, "index": 0} for a, b in zip(rows, labels, strict=True)])
    batch["attention_mask"][2, 1] = 0
    return batch


def states_and_gradients(
    model: torch.nn.Module, batch: TokenBatch, by_length: bool
) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    """Hidden states, the gradients of a loss on them, and the tokens of each forward, padding included."""
    forwards: list[int] = []
    whole = decoder(model).forward

    def counted(*arguments, **options):
        forwards.append(options["input_ids"].numel())
        return whole(*arguments, **options)

    run = decoder(model)
    run.forward = counted  # type: ignore[method-assign]
    try:
        hidden = answer_hidden(model, batch, by_length)
    finally:
        run.forward = whole  # type: ignore[method-assign]
    model.zero_grad()
    weights = torch.arange(hidden.numel(), dtype=hidden.dtype).reshape(hidden.shape).cos()
    (hidden * weights).sum().backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return hidden.detach(), found, forwards


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", *sorted(SIZES)])
def test_rows_of_similar_length_run_together_with_the_same_result(family, monkeypatch):
    model = (family_model(family) if family in SIZES else toy_model(family)).eval()
    model = model if family in ("gpt_oss", "prophetnet") else model.double()  # which fail in float64
    batch = of_lengths(9, 4, 20, 5, 8, 21)
    hidden, gradients, forwards = states_and_gradients(model, batch, by_length=False)
    assert forwards == [6 * 21]
    monkeypatch.setattr(module, "FORWARD_TOKENS", 4)
    found, grouped, forwards = states_and_gradients(model, batch, by_length=True)
    assert forwards == [2 * 5, 2 * 9, 2 * 21]
    # Rounding beside the largest entry, for small ones are sums of large ones; some families compute in float32 inside.
    torch.testing.assert_close(found, hidden, rtol=1e-5, atol=1e-6 * float(hidden.abs().max()))
    assert grouped.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in grouped.items():
        scale = max(float(gradients[name].abs().max()), largest / 100)  # a key's bias has a gradient of 0
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_few_tokens_run_at_once():
    *_, forwards = states_and_gradients(toy_model(), of_lengths(9, 4, 20), by_length=True)
    assert forwards == [60]


def test_a_masked_end_that_is_supervised_is_no_padding():
    batch = of_lengths(9, 4, 6)
    batch["attention_mask"][0, 7:] = 0
    assert used_lengths(batch) == [9, 4, 6]
    batch["labels"][0, 7:] = -100
    assert used_lengths(batch) == [7, 4, 6]
