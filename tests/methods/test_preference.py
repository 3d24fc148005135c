"""NPO, SimNPO and DPO against loops, and their limits."""

import math

import pytest
import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.losses.chunking import sequence_reduce
from dipo_lightning.losses.likelihood import token_nll
from dipo_lightning.methods.preference import dpo, npo, simnpo
from tests.helpers.batches import ROWS, SELECTED, TOKENS, B, assert_only_selected_have_gradient, batch_logits, nll_of


def sums(logits: Tensor) -> list[float]:
    return [sum(answer, 0.0) for answer in nll_of(logits)]


def nll(logits: Tensor, reduction: str = "sum") -> Tensor:
    return sequence_reduce(token_nll(logits[SELECTED], TOKENS), ROWS, B, reduction)


def preference_by_hand(gap: float, beta: float) -> float:
    return (2 / beta) * math.log(1 + math.exp(-beta * gap))


def test_npo() -> None:
    policy, reference = batch_logits(0).requires_grad_(), batch_logits(1)
    loss = npo(nll(policy), nll(reference), 0.3)
    expected = [preference_by_hand(a - b, 0.3) for a, b in zip(sums(policy), sums(reference), strict=True)]
    torch.testing.assert_close(loss.tolist(), expected)
    loss.sum().backward()
    assert_only_selected_have_gradient(policy.grad)


def test_npo_is_gradient_ascent_for_small_beta() -> None:
    policy, reference = batch_logits(0).requires_grad_(), batch_logits(1)
    (ascent,) = torch.autograd.grad(-nll(policy).sum(), policy)
    errors = []
    for beta in (1e-2, 1e-4):
        (gradient,) = torch.autograd.grad(npo(nll(policy), nll(reference), beta).sum(), policy)
        errors.append((gradient - ascent).abs().max().item())
    assert 0 < errors[1] < errors[0] / 50
    assert errors[1] < 1e-3


def test_npo_at_the_reference() -> None:
    values = torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True)
    loss = npo(values, values.detach(), 0.1)
    torch.testing.assert_close(loss, torch.full((2,), 20 * math.log(2), dtype=torch.float64))
    loss.sum().backward()
    assert values.grad.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("delta", [0.0, 1.5])
def test_simnpo(delta: float) -> None:
    policy = batch_logits(0).requires_grad_()
    loss = simnpo(nll(policy, "mean"), 4.5, delta)
    means = [sum(answer, 0.0) / max(len(answer), 1) for answer in nll_of(policy)]
    torch.testing.assert_close(loss.tolist(), [preference_by_hand(value - delta, 4.5) for value in means])
    loss.sum().backward()
    assert_only_selected_have_gradient(policy.grad)


def test_dpo() -> None:
    preferred, dispreferred = batch_logits(0).requires_grad_(), batch_logits(1).requires_grad_()
    loss = dpo(nll(preferred), nll(batch_logits(2)), nll(dispreferred), nll(batch_logits(3)), 0.2)
    parts = [sums(logits) for logits in (preferred, batch_logits(2), dispreferred, batch_logits(3))]
    # log-probabilities, as DPO is usually written
    expected = [preference_by_hand((-w + rw) - (-x + rx), 0.2) for w, rw, x, rx in zip(*parts, strict=True)]
    torch.testing.assert_close(loss.tolist(), expected)
    loss.sum().backward()
    assert_only_selected_have_gradient(preferred.grad)
    assert_only_selected_have_gradient(dispreferred.grad)


def test_dpo_raises_the_preferred_and_lowers_the_dispreferred() -> None:
    values = torch.zeros(4, 1, requires_grad=True)
    dpo(*values).sum().backward()
    assert values.grad.flatten().tolist() == [1.0, 0.0, -1.0, 0.0]  # nothing flows to the reference


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    for loss in (npo, dpo):
        arguments = [torch.zeros(1)] * (2 if loss is npo else 4)
        with pytest.raises(InputError, match="beta is"):
            loss(*arguments, beta)
    with pytest.raises(InputError, match="beta is"):
        simnpo(torch.zeros(1), beta)
