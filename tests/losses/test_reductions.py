"""Sequence reductions against plain loops."""

import pytest
import torch

from dipo_lightning.errors import InputError
from dipo_lightning.losses.chunking import global_mean, sequence_mean, sequence_reduce, sequence_sum

VALUES = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
ROWS = torch.tensor([0, 0, 2, 2, 2])


def test_sum_and_mean_by_hand() -> None:
    assert sequence_sum(VALUES, ROWS, 3).tolist() == [3.0, 0.0, 28.0]
    assert sequence_mean(VALUES, ROWS, 3).tolist() == [1.5, 0.0, 28.0 / 3]


def test_row_without_positions_has_a_finite_gradient() -> None:
    values = VALUES.clone().requires_grad_()
    sequence_mean(values, ROWS, 4).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64))


def test_nothing_selected() -> None:
    empty = torch.zeros(0)
    rows = torch.zeros(0, dtype=torch.int64)
    assert sequence_mean(empty, rows, 2).tolist() == [0.0, 0.0]
    assert global_mean(empty).item() == 0.0


def test_reduce_by_name() -> None:
    assert torch.equal(sequence_reduce(VALUES, ROWS, 3, "sum"), sequence_sum(VALUES, ROWS, 3))
    assert torch.equal(sequence_reduce(VALUES, ROWS, 3, "mean"), sequence_mean(VALUES, ROWS, 3))
    with pytest.raises(InputError, match="reduction is 'max'"):
        sequence_reduce(VALUES, ROWS, 3, "max")


def test_global_denominator_makes_parts_add_up_to_the_whole() -> None:
    parts = global_mean(VALUES[:2], 5.0) + global_mean(VALUES[2:], torch.tensor(5.0))
    assert parts.item() == pytest.approx(VALUES.mean().item(), abs=1e-12)
    assert global_mean(VALUES[:3]).item() == pytest.approx(7 / 3)
    assert global_mean(VALUES[:3], 7).item() == 1.0
