"""Batches: padding, masks from the lengths, and which positions are supervised."""

from __future__ import annotations

import torch

from dipo_lightning.models.answers import (
    collate,
    supervised_labels,
    supervised_positions,
    supervised_sequences,
    used_lengths,
)

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


def test_a_masked_end_that_is_supervised_is_no_padding():
    batch = collate([{"input_ids": [5] * n, "labels": [5] * n, "index": 0} for n in (9, 4, 6)])
    batch["attention_mask"][0, 7:] = 0
    assert used_lengths(batch) == [9, 4, 6]
    batch["labels"][0, 7:] = -100
    assert used_lengths(batch) == [7, 4, 6]
