"""A padded batch with prompts, and plain-Python computations on it that share no code with the package."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

V = 11
LABELS = torch.tensor(
    [
        [-100, -100, 3, 4, 10],  # prompt of 2, answer of 3
        [-100, 5, 10, -100, -100],  # padded
        [-100, -100, -100, -100, -100],  # no answer token at all
        [-100, 0, 0, 10, -100],
    ]
)
B = len(LABELS)
SELECTED = torch.zeros(B, LABELS.shape[1], dtype=torch.bool)
SELECTED[:, :-1] = LABELS[:, 1:] != -100
ROWS = SELECTED.nonzero()[:, 0]
TOKENS = LABELS[:, 1:][LABELS[:, 1:] != -100]


def batch_logits(seed: int) -> Tensor:
    """(B, L, V) float64 logits of the whole batch, prompt and padding included."""
    return 2 * torch.randn(B, LABELS.shape[1], V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(logits: list[float]) -> list[float]:
    """Softmax in plain Python."""
    weights = [math.exp(value) for value in logits]
    return [weight / sum(weights) for weight in weights]


def per_answer(value: Callable[[int, int, int], float]) -> list[list[float]]:
    """Call value(row, position, token) for each answer token of each row."""
    return [
        [value(row, t, token) for t, token in enumerate(LABELS[row, 1:].tolist()) if token != -100] for row in range(B)
    ]


def mean(answers: list[list[float]]) -> float:
    """Mean over all answer tokens."""
    values = [value for answer in answers for value in answer]
    return sum(values) / len(values)


def nll_of(logits: Tensor) -> list[list[float]]:
    """Token NLLs of each row in plain Python."""
    return per_answer(lambda row, t, token: -math.log(probabilities(logits[row, t].tolist())[token]))


def assert_only_selected_have_gradient(gradient: Tensor) -> None:
    """Prompt, padding and last positions have exactly zero gradient, the supervised ones do not."""
    assert (gradient[~SELECTED] == 0).all()
    assert (gradient[SELECTED].abs().amax(-1) > 0).all()
