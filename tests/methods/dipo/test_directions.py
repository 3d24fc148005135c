"""Directions that are computed once against margins and rewards from full logits."""

import pytest
import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.methods.dipo.directions import directions, margin_from_directions
from dipo_lightning.methods.dipo.pair import PairOptions, pair_parts
from tests.helpers.plain_dipo import rewards

N, H, H_REF, V = 9, 6, 4, 150
OPTIONS = [
    PairOptions("top_k", k=7, alpha=0.7),
    PairOptions("top_p", p=0.5, memory_vector="raw"),
    PairOptions("relative", rho=0.2),
]


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, H), (V, H), (N, H_REF), (V, H_REF)]
    hidden, weight, reference_hidden, reference_weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return hidden, weight, reference_hidden, reference_weight


@pytest.mark.parametrize("chunk_size", [2, 100])
@pytest.mark.parametrize("options", OPTIONS)
def test_margin_rewards_and_gradient(options: PairOptions, chunk_size: int) -> None:
    hidden, weight, reference_hidden, reference_weight = tensors()
    hidden.requires_grad_()
    found = directions(reference_hidden, reference_weight, weight, options, chunk_size)
    reference = reference_hidden @ reference_weight.T
    expected = rewards(*pair_parts(reference, options), hidden @ weight.T, reference, 1.0)
    members = ((found.preferred, found.preferred_offset), (found.dispreferred, found.dispreferred_offset))
    for (vector, offset), reward in zip(members, expected, strict=True):
        torch.testing.assert_close(margin_from_directions(hidden, vector) - offset, reward, rtol=0, atol=1e-10)
    margin = margin_from_directions(hidden, found.preferred - found.dispreferred)
    margin = margin - (found.preferred_offset - found.dispreferred_offset)
    torch.testing.assert_close(margin, expected[0] - expected[1], rtol=0, atol=1e-10)
    weights = torch.linspace(-1, 1, N, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((weights * value).sum(), hidden)[0] for value in (margin, expected[0] - expected[1])
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_where_the_hidden_states_are_the_reference(dtype: torch.dtype) -> None:
    hidden, weight, _, _ = tensors()
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    found = directions(hidden, weight, weight, OPTIONS[0], 4)
    assert found.preferred.dtype == torch.float32
    for vector, offset in zip(found[:2], found[2:], strict=True):
        assert (margin_from_directions(hidden, vector) - offset == 0).all()


def test_bfloat16_weights_are_raised_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dipo_lightning.methods.dipo.directions._VOCABULARY_SLICE", 40)
    _, weight, reference_hidden, reference_weight = (value.bfloat16() for value in tensors())
    found = directions(reference_hidden, reference_weight, weight, OPTIONS[0])
    parts = pair_parts(reference_hidden @ reference_weight.T, OPTIONS[0])
    for vector, part in zip(found[:2], parts, strict=True):
        torch.testing.assert_close(vector, part @ weight.float())


def test_nothing_is_differentiated() -> None:
    hidden, weight, _, _ = tensors()
    found = directions(hidden.requires_grad_(), weight, weight.requires_grad_(), OPTIONS[0])
    assert not any(value.requires_grad for value in found)


def test_errors() -> None:
    hidden, weight, reference_hidden, reference_weight = tensors()
    with pytest.raises(InputError, match="reference hidden states"):
        directions(hidden, reference_weight, weight, OPTIONS[0])
    with pytest.raises(InputError, match="same vocabulary"):
        directions(reference_hidden, reference_weight, weight[1:], OPTIONS[0])
    with pytest.raises(InputError, match=f"k is {V}"):
        directions(reference_hidden, reference_weight, weight, PairOptions("top_k", k=V))
    with pytest.raises(InputError, match="chunk_size"):
        directions(reference_hidden, reference_weight, weight, OPTIONS[0], 0)
