"""SatImp against loops."""

from __future__ import annotations

import math

import pytest
import torch

from dipo_lightning import SatImpModule
from dipo_lightning.errors import InputError
from dipo_lightning.losses.likelihood import token_nll, weighted_ascent
from tests.helpers.batches import SELECTED, TOKENS, assert_only_selected_have_gradient, batch_logits, mean, nll_of
from tests.helpers.methods import answer_logits
from tests.methods.test_forms import PARTS, loss_and_gradients, made


@pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (5.0, 0.1), (0.0, 0.0), (1.0, 2.0)])
def test_satimp(beta1: float, beta2: float) -> None:
    logits = batch_logits(0).requires_grad_()
    loss = weighted_ascent(token_nll(logits[SELECTED], TOKENS), beta1, beta2)
    expected = mean(
        [
            [math.exp(-value) ** beta1 * (1 - math.exp(-value)) ** beta2 * value for value in answer]
            for answer in nll_of(logits)
        ]
    )
    assert loss.item() == pytest.approx(-expected, abs=1e-12)
    loss.backward()
    # the weight is a constant: d/dh = -w (softmax - onehot) / N
    probability = logits.detach()[SELECTED].softmax(-1)
    chosen = probability.gather(-1, TOKENS.unsqueeze(-1))
    weight = chosen**beta1 * (1 - chosen) ** beta2
    closed = -weight * (probability - torch.nn.functional.one_hot(TOKENS, 11)) / len(TOKENS)
    torch.testing.assert_close(logits.grad[SELECTED], closed, rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(logits.grad)


def test_a_certain_token_has_no_weight_and_stays_finite() -> None:
    nll = torch.tensor([0.0, 1e-9], dtype=torch.float64, requires_grad=True)
    loss = weighted_ascent(nll, 5.0, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-0.5e-18)  # 1 - p keeps its digits
    assert nll.grad.isfinite().all()


def test_the_step_from_a_model() -> None:
    module = made(SatImpModule, "llama", "hidden", beta1=0.5)
    loss, _ = loss_and_gradients(module)
    terms = {}
    for part in ("forget", "retain"):
        logits, labels, _ = answer_logits(module.policy, PARTS[part])  # type: ignore[arg-type]
        terms[part] = -logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    p = (-terms["forget"]).exp()
    expected = -(p**0.5 * (1 - p) * terms["forget"]).mean() + 0.1 * terms["retain"].mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_negative_exponents(name: str) -> None:
    with pytest.raises(InputError, match=f"model.{name} is -1"):
        SatImpModule("toy", **{name: -1.0})  # type: ignore[arg-type]
