"""The block-wise search for the largest logits, and the factored members."""

import pytest
import torch

from dipo_lightning.methods.dipo.pair import PairOptions, factor, largest


@pytest.mark.parametrize(("width", "count"), [(7, 3), (64, 64), (640, 2), (4096, 11), (4096, 100), (4100, 5)])
@pytest.mark.parametrize("ties", [False, True])
def test_largest_is_sort(width: int, count: int, ties: bool) -> None:
    logits = torch.randn(5, width, generator=torch.Generator().manual_seed(width + count))
    logits = logits.round() if ties else logits
    values, indices = largest(logits, count)
    assert torch.equal(values, logits.sort(descending=True).values[:, :count])
    assert torch.equal(logits.gather(1, indices), values)
    assert all(len(set(row)) == count for row in indices.tolist())


def test_members_are_distributions_and_the_base_is_the_softmax() -> None:
    logits = torch.randn(6, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pair = factor(logits, PairOptions(selection="relative", rho=0.2))
    torch.testing.assert_close(pair.dense(pair.base), logits.softmax(-1))
    outside = torch.ones_like(logits, dtype=torch.bool).scatter_(1, pair.indices, False)
    torch.testing.assert_close(pair.normalizer[:, 0], logits.masked_fill(~outside, -torch.inf).logsumexp(-1))
    for member in (pair.base, pair.preferred, pair.dispreferred):
        torch.testing.assert_close(pair.dense(member).sum(-1), torch.ones(6, dtype=torch.float64))
    difference = pair.dense(pair.preferred) - pair.dense(pair.dispreferred)
    torch.testing.assert_close(pair.dense(pair.preferred - pair.dispreferred, in_place=True), difference)


def test_in_place_uses_the_memory_of_the_logits() -> None:
    logits = torch.randn(2, 50)
    assert factor(logits, PairOptions(), in_place=True).outside.data_ptr() == logits.data_ptr()
