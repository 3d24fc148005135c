"""Chunks that are computed again for the gradient, against everything at once."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.losses.chunking import in_chunks

N, H, V = 11, 4, 90


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, H, generator=generator, dtype=torch.float64) for n in (N, V))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.arange(N) * 13 % V


def capped(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.tanh(hidden @ weight.T / 3)
    chosen = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.logsumexp(-1) - chosen, chosen


@pytest.mark.parametrize("chunk_size", [1, 4, N, 100])
def test_values_and_gradients(chunk_size: int) -> None:
    hidden, weight, labels = tensors()
    right = capped(hidden, weight, labels)
    found = in_chunks(lambda x, y: capped(x, weight, y), chunk_size, hidden, labels)
    for value, expected in zip(found, right, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64)
    losses = [upstream @ (first + second.square()) for first, second in (found, right)]
    pairs = [torch.autograd.grad(loss, (hidden, weight)) for loss in losses]
    for gradient, exact in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-12)


def test_no_more_than_a_chunk_is_alive() -> None:
    """Not in the forward pass and not in the backward pass either, counted over all tensors of vocabulary size."""
    from torch.utils._python_dispatch import TorchDispatchMode

    alive = most = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            nonlocal alive, most
            result = function(*arguments, **(keywords or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == V and len(value) != H:
                    rows = len(value)
                    alive += rows
                    most = max(most, alive)
                    weakref.finalize(value, released, rows)
            return result

    def released(rows: int) -> None:
        nonlocal alive
        alive -= rows

    def run(chunk_size: int) -> int:
        nonlocal most
        hidden, weight, labels = tensors()
        most = alive
        before = alive
        with Watch():
            in_chunks(lambda x, y: capped(x, weight, y), chunk_size, hidden, labels)[0].sum().backward()
        return most - before

    few, all_at_once = run(2), run(N)
    assert 0 < few <= all_at_once * 3 / N


def test_random_numbers_are_the_same_in_the_backward_pass() -> None:
    hidden, _, _ = tensors()
    (values,) = in_chunks(lambda x: (torch.rand_like(x) * x,), 4, hidden)
    torch.rand(3)  # draws of others in between
    values.sum().backward()
    torch.testing.assert_close(hidden.grad, (values / hidden).detach())


def test_no_positions() -> None:
    hidden, weight, labels = tensors()
    (value, _) = in_chunks(lambda x, y: capped(x, weight, y), 4, hidden[:0], labels[:0])
    assert value.shape == (0,)
    value.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.count_nonzero() == 0


def test_errors() -> None:
    hidden, weight, labels = tensors()
    with pytest.raises(InputError, match="chunk_size is 0"):
        in_chunks(lambda x, y: capped(x, weight, y), 0, hidden, labels)
