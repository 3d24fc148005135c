"""Batches: examples of several lengths as one tensor, and the positions that are supervised in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED = -100
"""Label of a position that is not supervised (torch's default ``ignore_index``)."""

TokenBatch: TypeAlias = dict[str, Tensor]
"""``input_ids``, ``attention_mask``, ``labels`` (batch, length) and ``index`` (batch,), all int64."""


def collate(examples: Sequence[Mapping[str, Any]], pad_token_id: int = 0) -> TokenBatch:
    """Make a right-padded batch of tokenised examples.

    Args:
        examples: Each with ``input_ids`` and ``labels`` (lists of one length) and ``index`` (an int).
        pad_token_id: Fills up ``input_ids``; any id does, for the mask comes from the lengths. The tokenizer's own may
            be one that the model has no embedding for.

    Returns:
        ``input_ids``, ``attention_mask`` (1 on an example's own tokens) and ``labels`` (-100 where not supervised),
        each (batch, length) int64, and ``index`` (batch,) int64.
    """
    size = (len(examples), max((len(example["input_ids"]) for example in examples), default=0))
    batch = {
        "input_ids": torch.full(size, pad_token_id, dtype=torch.long),
        "attention_mask": torch.zeros(size, dtype=torch.long),
        "labels": torch.full(size, IGNORED, dtype=torch.long),
        "index": torch.tensor([int(example["index"]) for example in examples], dtype=torch.long),
    }
    for place, example in enumerate(examples):
        end = len(example["input_ids"])
        batch["input_ids"][place, :end] = torch.as_tensor(example["input_ids"], dtype=torch.long)
        batch["labels"][place, :end] = torch.as_tensor(example["labels"], dtype=torch.long)
        batch["attention_mask"][place, :end] = 1
    return batch


def collate_parts(items: Sequence[Mapping[str, Mapping[str, Any]]], pad_token_id: int = 0) -> dict[str, TokenBatch]:
    """Make a right-padded batch of each part; a plain function, so that any kind of loader worker can have it."""
    return {part: collate([item[part] for item in items], pad_token_id) for part in items[0]}


def concatenate(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Stack token batches into one, right-padded to the longest."""
    if len(batches) == 1:
        return batches[0]
    length = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    joined = {
        name: torch.cat([pad(batch[name], (0, length - batch[name].shape[1]), value=value) for batch in batches])
        for name, value in fill.items()
    }
    joined["index"] = torch.cat([batch["index"] for batch in batches])
    return joined


def supervised_positions(labels: Tensor) -> Tensor:
    """Mark the positions whose logits predict a supervised token.

    Args:
        labels: (batch, length) int64, -100 where not supervised.

    Returns:
        (batch, length) bool, true at t where ``labels[:, t + 1]`` is supervised; the last column is false.
    """
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != IGNORED
    return positions


def supervised_labels(labels: Tensor) -> Tensor:
    """Return the token that each supervised position predicts: (N,) int64, in the order of ``logits[positions]``."""
    return labels[:, 1:][labels[:, 1:] != IGNORED]


def supervised_sequences(labels: Tensor) -> Tensor:
    """Return the sequence of the batch that each supervised position belongs to: (N,) int64, ascending."""
    return supervised_positions(labels).nonzero()[:, 0]
