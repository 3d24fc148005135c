"""Token and sequence NLL."""

import pytest
import torch

from dipo_lightning.errors import InputError
from dipo_lightning.losses.likelihood import sequence_nll, token_nll
from tests.helpers.batches import ROWS, SELECTED, TOKENS, B, batch_logits, nll_of


def test_against_a_loop() -> None:
    logits = batch_logits(0)
    expected = nll_of(logits)
    flat = [value for answer in expected for value in answer]
    torch.testing.assert_close(token_nll(logits[SELECTED], TOKENS).tolist(), flat)
    sums = sequence_nll(logits[SELECTED], TOKENS, ROWS, B)
    torch.testing.assert_close(sums.tolist(), [sum(answer, 0.0) for answer in expected])
    means = sequence_nll(logits[SELECTED], TOKENS, ROWS, B, "mean")
    torch.testing.assert_close(means.tolist(), [sum(answer, 0.0) / max(len(answer), 1) for answer in expected])
    assert sums[2] == 0


def test_bfloat16_is_computed_in_float32() -> None:
    logits = batch_logits(0)[SELECTED].bfloat16()
    assert torch.equal(token_nll(logits, TOKENS), token_nll(logits.float(), TOKENS))


def test_an_unsupervised_label_is_an_error_not_a_silent_zero() -> None:
    with pytest.raises((IndexError, RuntimeError), match="-100"):
        token_nll(torch.zeros(1, 5), torch.tensor([-100]))


def test_unknown_reduction() -> None:
    with pytest.raises(InputError, match="reduction"):
        sequence_nll(torch.zeros(1, 5), torch.tensor([1]), torch.tensor([0]), 1, "max")
