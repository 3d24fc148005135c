"""Batches: examples of several lengths as one tensor, and the positions that are supervised in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is not supervised (torch's default ``ignore_index``)."""

TokenBatch: TypeAlias = dict[str, Tensor]
"""``input_ids``, ``attention_mask``, ``labels`` (batch, length) and ``index`` (batch,), all int64."""


def collate(
    examples: Sequence[Mapping[str, Any]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> TokenBatch:
    """Right-padded batch of tokenised examples.

    Args:
        examples: Each with ``input_ids`` and ``labels`` (lists of one length) and ``index`` (an int).
        pad_token_id: Fills up ``input_ids``; it may be the end-of-sequence id, for the mask comes from the lengths.
        pad_to_multiple_of: Round the length up to a multiple of this.

    Returns:
        ``input_ids``, ``attention_mask`` (1 on an example's own tokens) and ``labels`` (-100 where not supervised),
        each (batch, length) int64, and ``index`` (batch,) int64.
    """
    length = _length([len(example["input_ids"]) for example in examples], pad_to_multiple_of)
    size = (len(examples), length)
    batch = {
        "input_ids": torch.full(size, pad_token_id, dtype=torch.long),
        "attention_mask": torch.zeros(size, dtype=torch.long),
        "labels": torch.full(size, IGNORED, dtype=torch.long),
        "index": torch.tensor([int(example["index"]) for example in examples], dtype=torch.long),
    }
    for row, example in enumerate(examples):
        end = len(example["input_ids"])
        batch["input_ids"][row, :end] = torch.as_tensor(example["input_ids"], dtype=torch.long)
        batch["labels"][row, :end] = torch.as_tensor(example["labels"], dtype=torch.long)
        batch["attention_mask"][row, :end] = 1
    return batch


def collate_halves(items: Sequence[Mapping[str, Mapping[str, Any]]], pad_token_id: int) -> dict[str, TokenBatch]:
    """Right-padded batches of pairs, half by half; a plain function, so that any kind of loader worker can have it."""
    return {half: collate([item[half] for item in items], pad_token_id) for half in items[0]}


def collate_prompts(
    prompts: Sequence[Sequence[int]],
    pad_token_id: int,
    index: Sequence[int] | None = None,
    pad_to_multiple_of: int | None = None,
) -> TokenBatch:
    """Left-padded batch of prompts, for generation.

    Args:
        prompts: Token ids, each prompt of its own length.
        pad_token_id: Fills up ``input_ids`` in front.
        index: Each prompt's row in its data set; 0, 1, 2, ... without.
        pad_to_multiple_of: Round the length up to a multiple of this.

    Returns:
        ``input_ids`` and ``attention_mask`` (batch, length) int64, and ``index`` (batch,) int64.
    """
    length = _length([len(prompt) for prompt in prompts], pad_to_multiple_of)
    input_ids = torch.full((len(prompts), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt)
        input_ids[row, start:] = torch.as_tensor(prompt, dtype=torch.long)
        attention_mask[row, start:] = 1
    rows = torch.as_tensor(list(range(len(prompts)) if index is None else index), dtype=torch.long)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "index": rows}


def supervised_positions(labels: Tensor) -> Tensor:
    """Where the logits predict a supervised token.

    Args:
        labels: (batch, length) int64, -100 where not supervised.

    Returns:
        (batch, length) bool, true at t where ``labels[:, t + 1]`` is supervised; the last column is false.
    """
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != IGNORED
    return positions


def selected_labels(labels: Tensor) -> Tensor:
    """The token each supervised position predicts: (selected,) int64, in the order of ``logits[positions]``."""
    return labels[:, 1:][labels[:, 1:] != IGNORED]


def selected_rows(labels: Tensor) -> Tensor:
    """The batch row of each supervised position: (selected,) int64, ascending."""
    return supervised_positions(labels).nonzero()[:, 0]


def _length(lengths: Sequence[int], multiple: int | None) -> int:
    longest = max(lengths, default=0)
    return longest if multiple is None else -(-longest // multiple) * multiple
