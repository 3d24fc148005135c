"""UNDIAL against a loop."""

import math

import pytest
import torch

from dipo_lightning.errors import InputError
from dipo_lightning.methods.undial import undial, undial_target
from tests.helpers.batches import (
    SELECTED,
    TOKENS,
    assert_only_selected_have_gradient,
    batch_logits,
    mean,
    per_answer,
    probabilities,
)


def test_against_a_loop() -> None:
    policy, reference = batch_logits(0).requires_grad_(), batch_logits(1)
    loss = undial(policy[SELECTED], reference[SELECTED], TOKENS, 3.0).mean()

    def value(row: int, t: int, token: int) -> float:
        teacher = reference[row, t].tolist()
        teacher[token] -= 3.0
        student = probabilities(policy[row, t].tolist())
        return -sum(q * math.log(p) for q, p in zip(probabilities(teacher), student, strict=True))

    assert loss.item() == pytest.approx(mean(per_answer(value)), abs=1e-12)
    loss.backward()
    closed = policy.detach()[SELECTED].softmax(-1) - undial_target(reference[SELECTED], TOKENS, 3.0)
    torch.testing.assert_close(policy.grad[SELECTED], closed / len(TOKENS), rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(policy.grad)


def test_without_strength_the_reference_is_the_optimum() -> None:
    policy = batch_logits(1).requires_grad_()
    undial(policy[SELECTED], policy.detach()[SELECTED], TOKENS, 0.0).mean().backward()
    torch.testing.assert_close(policy.grad, torch.zeros_like(policy), rtol=0, atol=1e-15)


def test_target_leaves_the_reference_logits_alone() -> None:
    reference = batch_logits(1)[SELECTED]
    before = reference.clone()
    target = undial_target(reference, TOKENS, 1e3)
    assert torch.equal(reference, before)
    assert (target.gather(-1, TOKENS.unsqueeze(-1)) == 0).all()
    torch.testing.assert_close(target.sum(-1), torch.ones(len(TOKENS), dtype=torch.float64))


def test_negative_strength() -> None:
    with pytest.raises(InputError, match="strength is -1"):
        undial_target(torch.zeros(1, 3), torch.tensor([0]), -1)
