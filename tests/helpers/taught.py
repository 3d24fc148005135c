"""Toy models that know something, so that there is something to forget and a utility to keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

IGNORED = -100


def teach(folder: str | Path, examples: Sequence[tuple[Sequence[int], Sequence[int]]], steps: int = 60) -> Path:
    """Train the model in a folder on prompts and their continuations, all in one batch; returns the folder.

    Args:
        folder: Folder of the model, which is overwritten.
        examples: Ids of each prompt and of what follows it.
        steps: Number of optimiser steps.
    """
    ids = [torch.tensor([*prompt, *answer]) for prompt, answer in examples]
    labels = [torch.tensor([IGNORED] * len(prompt) + list(answer)) for prompt, answer in examples]
    inputs = pad_sequence(ids, batch_first=True)
    wanted = pad_sequence(labels, batch_first=True, padding_value=IGNORED)[:, 1:]
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        logits = model(input_ids=inputs).logits[:, :-1]
        optimizer.zero_grad()
        cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED).backward()
        optimizer.step()
    model.save_pretrained(folder)
    return Path(folder)
