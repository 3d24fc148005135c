"""UNDIAL against a loop."""

import math

import pytest
import torch

from dipo_lightning import UNDIALModule
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
from tests.helpers.methods import answer_logits
from tests.methods.test_forms import PARTS, loss_and_gradients, made


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
    with pytest.raises(InputError, match="model.strength is -1"):
        UNDIALModule("absent", strength=-1)


def test_its_source_has_no_retain_term() -> None:
    module = made(UNDIALModule, "llama", "hidden")
    loss, _ = loss_and_gradients(module)
    policy, labels, _ = answer_logits(module.policy, PARTS["forget"])  # type: ignore[arg-type]
    teacher = answer_logits(module.frozen_reference.model, PARTS["forget"])[0].detach().clone()  # type: ignore[union-attr]
    teacher[torch.arange(len(labels)), labels] -= 10.0
    expected = -(teacher.softmax(-1) * policy.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)
    held, _ = loss_and_gradients(made(UNDIALModule, "llama", "hidden", lambda_=1.0))
    assert held > loss
    assert made(UNDIALModule, "llama", "hidden", retain_loss="kl").reference_parts == ["forget"], "it can be cached"
