"""Retain losses against loops."""

import math

import pytest
import torch

from dipo_lightning.losses.likelihood import retain_kl, retain_nll, token_nll
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


def test_nll() -> None:
    logits = batch_logits(0).requires_grad_()
    loss = retain_nll(token_nll(logits[SELECTED], TOKENS))
    assert loss.item() == pytest.approx(mean(nll_of(logits)), abs=1e-12)
    loss.backward()
    assert_only_selected_have_gradient(logits.grad)


def test_kl() -> None:
    policy, reference = batch_logits(0).requires_grad_(), batch_logits(1)
    loss = retain_kl(policy[SELECTED], reference[SELECTED])

    def value(row: int, t: int, token: int) -> float:
        pairs = zip(probabilities(reference[row, t].tolist()), probabilities(policy[row, t].tolist()), strict=True)
        return sum(q * math.log(q / p) for q, p in pairs)

    assert loss.item() == pytest.approx(mean(per_answer(value)), abs=1e-12)
    assert retain_kl(policy[SELECTED], reference[SELECTED], 1.0).item() == pytest.approx(loss.item() * len(TOKENS))
    loss.backward()
    closed = (policy.detach().softmax(-1) - reference.softmax(-1))[SELECTED] / len(TOKENS)
    torch.testing.assert_close(policy.grad[SELECTED], closed, rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(policy.grad)


def test_kl_at_the_reference_is_zero_with_zero_gradient() -> None:
    policy = batch_logits(1).requires_grad_()
    loss = retain_kl(policy[SELECTED], policy[SELECTED])
    loss.backward()
    assert loss.item() == 0.0
    torch.testing.assert_close(policy.grad, torch.zeros_like(policy), rtol=0, atol=1e-15)


def test_kl_of_bfloat16_logits_is_float32() -> None:
    low = batch_logits(0)[SELECTED].bfloat16()
    assert retain_kl(low, low + 1).dtype == torch.float32


def test_no_retain_token_gives_zero() -> None:
    assert retain_nll(torch.zeros(0)).item() == 0.0
    assert retain_kl(torch.zeros(0, 5), torch.zeros(0, 5)).item() == 0.0
