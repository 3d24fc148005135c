"""The margin from hidden states against the plain one on logits."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.losses.chunking import sequence_sum
from dipo_lightning.methods.dipo.kernels import chunked_margin as chunked
from dipo_lightning.methods.dipo.loss import TokenMargins, dipo_loss
from dipo_lightning.methods.dipo.pair import PairOptions, make_pair, pair_parts
from tests.helpers.plain_dipo import rewards

N, H, H_REF, V, COUNT = 11, 6, 4, 150, 3
ROWS = torch.arange(N) * COUNT // N
OPTIONS = [
    PairOptions("top_k", k=7, alpha=0.7),
    PairOptions("top_p", p=0.5, alpha=1.5),
    PairOptions("relative", rho=0.2, memory_vector="raw"),
]

SETS = [PairOptions("relative", rho=0.2), *(PairOptions("top_k", k=k) for k in (40, 100))]
"""Sets whose logits are computed otherwise for the rewards: by one gather, by several, and from all logits."""


def tensors(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Policy hidden states and projection, reference hidden states and projection."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(N, H), (V, H), (N, H_REF), (V, H_REF)]
    hidden, weight, reference_hidden, reference_weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )
    return hidden.requires_grad_(), weight.requires_grad_(), reference_hidden, reference_weight


def chunked_margin(*given: Any, **options: Any) -> Tensor:
    return chunked(*given, **options).margin


def chunked_margin_with_rewards(*given: Any, **options: Any) -> TokenMargins:
    return chunked(*given, with_rewards=True, **options)


def plain_margin(given: tuple[Tensor, ...], options: PairOptions, source: str) -> Tensor:
    """Token margins from full logits, probabilities and autograd."""
    hidden, weight, reference_hidden, reference_weight = given
    policy, reference = hidden @ weight.T, reference_hidden @ reference_weight.T
    preferred, dispreferred = make_pair(reference if source == "reference" else policy, options)
    ratio = policy.log_softmax(-1) - reference.log_softmax(-1)
    return ((preferred.exp() - dispreferred.exp()) * ratio).sum(-1)


def loss_and_gradients(margin: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    loss = dipo_loss(sequence_sum(margin, ROWS, COUNT), 0.3).sum()
    return loss.detach(), *torch.autograd.grad(loss, given[:2])


@pytest.mark.parametrize("chunk_size", [1, 4, N, 100])
@pytest.mark.parametrize("source", ["reference", "policy"])
@pytest.mark.parametrize("options", OPTIONS)
def test_equal_to_plain_in_float64(options: PairOptions, source: str, chunk_size: int) -> None:
    given = tensors()
    expected = plain_margin(given, options, source)
    found = chunked_margin(*given, replace(options, source=source), chunk_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    pairs = zip(loss_and_gradients(found, given), loss_and_gradients(expected, given), strict=True)
    for fast, plain in pairs:
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [4, 100])
@pytest.mark.parametrize("options", OPTIONS)
def test_equal_to_plain_in_float32(options: PairOptions, chunk_size: int) -> None:
    given, exact = tensors(torch.float32), tensors()
    fast = loss_and_gradients(chunked_margin(*given, options, chunk_size), given)
    plain = loss_and_gradients(plain_margin(exact, options, "reference"), exact)
    torch.testing.assert_close(fast[0].double(), plain[0], rtol=1e-5, atol=0)
    for gradient, expected in zip(fast[1:], plain[1:], strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient.double() - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize(("chunk_size", "source"), list(itertools.product([4, 100], ["reference", "policy"])))
@pytest.mark.parametrize("options", [*OPTIONS, *SETS, PairOptions("top_k", memory_vector="raw")])
def test_rewards(options: PairOptions, chunk_size: int, source: str) -> None:
    given = tensors()
    policy, reference = given[0] @ given[1].T, given[2] @ given[3].T
    base, extra = (reference, None) if source == "reference" else (policy, reference)
    expected = rewards(*pair_parts(base, options, extra), policy, reference, 1.0)
    found = chunked_margin_with_rewards(*given, replace(options, source=source), chunk_size)
    torch.testing.assert_close(found.preferred, expected[0].detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.dispreferred, expected[1].detach(), rtol=0, atol=1e-10)
    assert not found.preferred.requires_grad
    assert not found.dispreferred.requires_grad
    pairs = zip(
        loss_and_gradients(found.margin, given),
        loss_and_gradients(chunked_margin(*given, replace(options, source=source), chunk_size), given),
        strict=True,
    )
    for with_rewards, without in pairs:
        torch.testing.assert_close(with_rewards, without, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [4, 100])
def test_rewards_with_a_frozen_projection(chunk_size: int) -> None:
    hidden, weight, _, _ = tensors()
    given = (hidden, weight, hidden.detach().flip(0), weight)
    policy, reference = given[0] @ weight.T, given[2] @ weight.T
    expected = rewards(*pair_parts(reference, OPTIONS[0]), policy, reference, 1.0)
    found = chunked_margin_with_rewards(*given, OPTIONS[0], chunk_size)
    torch.testing.assert_close(found.preferred, expected[0].detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.dispreferred, expected[1].detach(), rtol=0, atol=1e-10)


def test_rewards_where_nothing_lies_outside_the_set() -> None:
    """All logits equal: the pair is no pair; and one token with nearly all the mass, as on memorised text."""
    weight = torch.zeros(20, 2)
    weight[3] = torch.tensor([60.0, 0.0])
    hidden = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    other = weight + 0.1 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    options = PairOptions("top_k", k=1)
    found = chunked_margin_with_rewards(hidden, other, hidden, weight, options)
    policy, reference = hidden.double() @ other.double().T, hidden.double() @ weight.double().T
    expected = rewards(*pair_parts(reference, options), policy, reference, 1.0)
    torch.testing.assert_close(found.preferred.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.dispreferred.double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [2, 100])
def test_gradcheck(chunk_size: int) -> None:
    hidden, weight, *reference = tensors()
    small = (hidden[:3, :2], weight[:14, :2], reference[0][:3], reference[1][:14])
    assert torch.autograd.gradcheck(lambda x, w: chunked_margin(x, w, *small[2:], OPTIONS[0], chunk_size), small[:2])


@pytest.mark.parametrize(("for_hidden", "for_weight"), [(True, False), (False, True)])
@pytest.mark.parametrize("source", ["reference", "policy"])
@pytest.mark.parametrize("chunk_size", [4, 100])
def test_only_the_gradient_that_is_needed(chunk_size: int, source: str, for_hidden: bool, for_weight: bool) -> None:
    given = tensors()
    both = loss_and_gradients(plain_margin(given, OPTIONS[0], source), given)
    hidden = given[0].detach().requires_grad_(for_hidden)
    weight = given[1].detach().requires_grad_(for_weight)
    margin = chunked_margin(hidden, weight, *given[2:], replace(OPTIONS[0], source=source), chunk_size)
    dipo_loss(sequence_sum(margin, ROWS, COUNT), 0.3).sum().backward()
    leaf, expected = (hidden, both[1]) if for_hidden else (weight, both[2])
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_all_three_are_exactly_zero_where_logits_are_compared(options: PairOptions, dtype: torch.dtype) -> None:
    hidden, weight, _, _ = tensors(dtype)
    start = hidden.detach().clone(), weight.detach().clone()
    for value in chunked_margin_with_rewards(hidden, weight, *start, options, 4, compare=True):
        assert (value == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_exactly_zero_at_the_reference(dtype: torch.dtype, trained: bool) -> None:
    hidden, weight, _, _ = tensors(dtype)
    reference_weight = weight.detach().clone() if trained else weight
    margin = chunked_margin(hidden, weight, hidden.detach().clone(), reference_weight, OPTIONS[0], 4)
    if trained and dtype == torch.float32:  # <W^T d, x> and <d, W x> are rounded differently
        assert margin.abs().max() < 1e-5
    else:
        assert (margin == 0).all()


def test_a_frozen_projection_given_twice() -> None:
    hidden, weight, _, _ = tensors()
    weight.requires_grad_(False)
    other = hidden.detach().flip(0)
    given = (hidden, weight, other, weight)
    margin, expected = chunked_margin(*given, OPTIONS[0], 4), plain_margin(given, OPTIONS[0], "reference")
    torch.testing.assert_close(margin, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(value.square().sum(), hidden)[0] for value in (margin, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shared", [False, True])
def test_bfloat16_is_near(shared: bool) -> None:
    given = tensors(torch.bfloat16)
    if shared:
        given = (given[0], given[1], given[0].detach().flip(0), given[1])
    exact = tuple(value.detach().double().requires_grad_(value.requires_grad) for value in given)
    margin, expected = chunked_margin(*given, OPTIONS[0], 4), plain_margin(exact, OPTIONS[0], "reference")
    assert margin.dtype == torch.float32
    torch.testing.assert_close(margin.double(), expected, rtol=0.02, atol=0.05)
    fast, plain = loss_and_gradients(margin, given), loss_and_gradients(expected, exact)
    for gradient, right in zip(fast[1:], plain[1:], strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - right).norm() < 0.05 * right.norm()


def test_under_autocast() -> None:
    given = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        margin = chunked_margin(*given, OPTIONS[0], 4)
    low = tuple(value.detach().bfloat16() for value in given)
    assert torch.equal(margin.detach(), chunked_margin(*low, OPTIONS[0], 4))
    gradients = loss_and_gradients(margin, given)
    assert gradients[1].dtype == gradients[2].dtype == torch.float32
    assert gradients[2].abs().max() > 0


def test_no_positions() -> None:
    hidden, weight, reference_hidden, reference_weight = tensors()
    empty = hidden.detach()[:0].requires_grad_()
    margin = chunked_margin(empty, weight, reference_hidden[:0], reference_weight, OPTIONS[0])
    assert margin.shape == (0,)
    margin.sum().backward()
    assert empty.grad.shape == (0, H)
    assert (weight.grad == 0).all()


def test_memory_does_not_grow_with_the_positions() -> None:
    """No tensor made on the way has more rows of vocabulary size than a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                if isinstance(value, Tensor) and value.untyped_storage().nbytes() // value.element_size() % V == 0:
                    largest = max(largest, value.untyped_storage().nbytes() // value.element_size() // V)
            return result

    given = tensors()
    with Watch():
        chunked_margin(*given, OPTIONS[0], 2).sum().backward()
    assert 0 < largest <= max(2, H)  # H: the projection itself and its gradient


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"hidden": torch.zeros(N, H + 1)}, "policy hidden states"),
        ({"reference_hidden": torch.zeros(N, H_REF + 1)}, "reference hidden states"),
        ({"reference_hidden": torch.zeros(N + 1, H_REF)}, "both must be the same batch"),
        ({"reference_weight": torch.zeros(V + 1, H_REF)}, "both must be the same batch"),
        ({"options": PairOptions("top_k", k=V)}, f"k is {V}"),
    ],
)
def test_errors(change: dict[str, object], message: str) -> None:
    names = ("hidden", "weight", "reference_hidden", "reference_weight")
    arguments = dict(zip(names, tensors(torch.float32), strict=True)) | {"options": OPTIONS[0]} | change
    with pytest.raises(InputError, match=message):
        chunked_margin(**arguments)
