"""Gradient ascent, WGA and CE-U against loops."""

import math

import pytest
import torch

from dipo_lightning.errors import InputError
from dipo_lightning.losses.likelihood import token_nll
from dipo_lightning.methods.gradient_ascent import ce_u, wga
from tests.helpers.batches import (
    SELECTED,
    TOKENS,
    assert_only_selected_have_gradient,
    batch_logits,
    mean,
    nll_of,
    per_answer,
    probabilities,
)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_wga(beta: float) -> None:
    logits = batch_logits(0).requires_grad_()
    loss = wga(token_nll(logits[SELECTED], TOKENS), beta)
    expected = mean([[math.exp(-value) ** beta * value for value in answer] for answer in nll_of(logits)])
    assert loss.item() == pytest.approx(-expected, abs=1e-12)
    loss.backward()
    # the weight is a constant: d/dh = -p^beta (softmax - onehot) / N
    probability = logits.detach()[SELECTED].softmax(-1)
    chosen = probability.gather(-1, TOKENS.unsqueeze(-1))
    closed = -(chosen**beta) * (probability - torch.nn.functional.one_hot(TOKENS, 11)) / len(TOKENS)
    torch.testing.assert_close(logits.grad[SELECTED], closed, rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(logits.grad)


def test_wga_with_beta_zero_is_gradient_ascent() -> None:
    nll = token_nll(batch_logits(0)[SELECTED], TOKENS)
    assert torch.equal(wga(nll, 0.0), -nll.mean())


def test_ce_u() -> None:
    logits = batch_logits(0).requires_grad_()
    loss = ce_u(logits[SELECTED], TOKENS).mean()

    def value(row: int, t: int, token: int) -> float:
        p = probabilities(logits[row, t].tolist())
        return -sum(q / (1 - p[token]) * math.log(q) for z, q in enumerate(p) if z != token)

    assert loss.item() == pytest.approx(mean(per_answer(value)), abs=1e-12)
    loss.backward()
    p = logits.detach()[SELECTED].softmax(-1)
    target = p.scatter(-1, TOKENS.unsqueeze(-1), 0.0)
    closed = (p - target / target.sum(-1, keepdim=True)) / len(TOKENS)
    torch.testing.assert_close(logits.grad[SELECTED], closed, rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(logits.grad)


def test_a_certain_label_stays_finite() -> None:
    logits = torch.zeros(1, 5)
    logits[0, 2] = 80.0
    logits.requires_grad_()
    loss = ce_u(logits, torch.tensor([2])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(80.0)
    assert logits.grad.isfinite().all()


def test_negative_beta() -> None:
    with pytest.raises(InputError, match="beta is -1"):
        wga(torch.zeros(1), -1)
