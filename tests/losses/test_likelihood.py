"""Token and sequence NLL, and KL, against loops."""

import math

import pytest
import torch

from dipo_lightning.losses.chunking import global_mean, sequence_reduce
from dipo_lightning.losses.likelihood import token_kl, token_nll
from tests.helpers.batches import (
    ROWS,
    SELECTED,
    TOKENS,
    B,
    assert_only_selected_have_gradient,
    batch_logits,
    mean,
    nll_of,
    per_answer,
    probabilities,
)


def test_against_a_loop() -> None:
    logits = batch_logits(0)
    expected = nll_of(logits)
    flat = [value for answer in expected for value in answer]
    torch.testing.assert_close(token_nll(logits[SELECTED], TOKENS).tolist(), flat)
    sums = sequence_reduce(token_nll(logits[SELECTED], TOKENS), ROWS, B, "sum")
    torch.testing.assert_close(sums.tolist(), [sum(answer, 0.0) for answer in expected])
    means = sequence_reduce(token_nll(logits[SELECTED], TOKENS), ROWS, B, "mean")
    torch.testing.assert_close(means.tolist(), [sum(answer, 0.0) / max(len(answer), 1) for answer in expected])
    assert sums[2] == 0


def test_bfloat16_is_computed_in_float32() -> None:
    logits = batch_logits(0)[SELECTED].bfloat16()
    assert torch.equal(token_nll(logits, TOKENS), token_nll(logits.float(), TOKENS))


def test_an_unsupervised_label_is_an_error_not_a_silent_zero() -> None:
    with pytest.raises((IndexError, RuntimeError), match="-100"):
        token_nll(torch.zeros(1, 5), torch.tensor([-100]))


def test_mean_nll() -> None:
    logits = batch_logits(0).requires_grad_()
    loss = global_mean(token_nll(logits[SELECTED], TOKENS))
    assert loss.item() == pytest.approx(mean(nll_of(logits)), abs=1e-12)
    loss.backward()
    assert_only_selected_have_gradient(logits.grad)


def test_kl() -> None:
    policy, reference = batch_logits(0).requires_grad_(), batch_logits(1)
    loss = global_mean(token_kl(policy[SELECTED], reference[SELECTED]))

    def value(row: int, t: int, token: int) -> float:
        pairs = zip(probabilities(reference[row, t].tolist()), probabilities(policy[row, t].tolist()), strict=True)
        return sum(q * math.log(q / p) for q, p in pairs)

    assert loss.item() == pytest.approx(mean(per_answer(value)), abs=1e-12)
    assert global_mean(token_kl(policy[SELECTED], reference[SELECTED]), 1.0).item() == pytest.approx(
        loss.item() * len(TOKENS)
    )
    loss.backward()
    closed = (policy.detach().softmax(-1) - reference.softmax(-1))[SELECTED] / len(TOKENS)
    torch.testing.assert_close(policy.grad[SELECTED], closed, rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(policy.grad)


def test_kl_at_the_reference_is_zero_with_zero_gradient() -> None:
    policy = batch_logits(1).requires_grad_()
    loss = global_mean(token_kl(policy[SELECTED], policy[SELECTED]))
    loss.backward()
    assert loss.item() == 0.0
    torch.testing.assert_close(policy.grad, torch.zeros_like(policy), rtol=0, atol=1e-15)


def test_kl_of_bfloat16_logits_is_float32() -> None:
    low = batch_logits(0)[SELECTED].bfloat16()
    assert token_kl(low, low + 1).dtype == torch.float32


def test_no_token_gives_zero() -> None:
    assert global_mean(torch.zeros(0)).item() == 0.0
    assert global_mean(token_kl(torch.zeros(0, 5), torch.zeros(0, 5))).item() == 0.0
