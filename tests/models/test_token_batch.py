"""Batches: padding, masks from the lengths, and which positions are supervised."""

from __future__ import annotations

import pytest
import torch

from dipo_lightning.models.token_batch import (
    collate,
    collate_prompts,
    selected_labels,
    selected_rows,
    supervised_positions,
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


def test_supervised_positions_predict_the_selected_labels_row_by_row():
    labels = collate(EXAMPLES, pad_token_id=0)["labels"]
    positions = supervised_positions(labels)
    assert positions.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert selected_labels(labels).tolist() == [7, 2, 2]
    assert selected_rows(labels).tolist() == [0, 0, 1]
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 7, 2, 0], [2, 0, 0, 0]]), 8)
    assert logits[positions].argmax(-1).tolist() == selected_labels(labels).tolist()


def test_a_supervised_first_token_is_not_selected():
    labels = torch.tensor([[4, 5]])
    assert selected_labels(labels).tolist() == [5]
    assert supervised_positions(labels).tolist() == [[True, False]]


def test_left_padding_for_generation():
    batch = collate_prompts([[5], [5, 6, 7]], pad_token_id=0, index=[4, 8])
    assert batch["input_ids"].tolist() == [[0, 0, 5], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch["index"].tolist() == [4, 8]
    assert collate_prompts([[5], [6]], pad_token_id=0)["index"].tolist() == [0, 1]


@pytest.mark.parametrize(("multiple", "length"), [(None, 4), (1, 4), (4, 4), (8, 8), (3, 6)])
def test_padding_to_a_multiple(multiple, length):
    batch = collate(EXAMPLES, pad_token_id=0, pad_to_multiple_of=multiple)
    assert batch["input_ids"].shape == (2, length)
    assert batch["attention_mask"].sum().item() == 6
    prompts = collate_prompts([[5, 6, 7, 2]], 0, pad_to_multiple_of=multiple)
    assert prompts["input_ids"].tolist()[0][-4:] == [5, 6, 7, 2]
    assert prompts["input_ids"].shape == (1, length)
