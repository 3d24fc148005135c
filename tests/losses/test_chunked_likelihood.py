"""NLL and KL divergence from hidden states against the plain ones on logits."""

import pytest
import torch
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.losses.likelihood import chunked_kl_sum, chunked_nll, chunked_nll_sum, token_kl, token_nll

N, H, V = 11, 6, 150
LABELS = torch.arange(N) * 13 % V
UPSTREAM = torch.linspace(-1, 2, N, dtype=torch.float64)


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, H, generator=generator, dtype=torch.float64).to(dtype) for n in (N, V))
    return hidden.requires_grad_(), weight.requires_grad_()


def value_and_gradients(nll: Tensor, given: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return nll.detach(), *torch.autograd.grad((nll * UPSTREAM.to(nll.dtype)).sum(), given)


@pytest.mark.parametrize("chunk_size", [1, 4, N, 100])
def test_equal_to_plain_in_float64(chunk_size: int) -> None:
    given = tensors()
    fast = value_and_gradients(chunked_nll(*given, LABELS, chunk_size), given)
    plain = value_and_gradients(token_nll(given[0] @ given[1].T, LABELS), given)
    for found, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_size", [4, 100])
def test_low_precision_is_near(chunk_size: int, dtype: torch.dtype) -> None:
    given = tensors(dtype)
    exact = tuple(value.detach().double().requires_grad_() for value in given)
    fast = value_and_gradients(chunked_nll(*given, LABELS, chunk_size), given)
    plain = value_and_gradients(token_nll(exact[0] @ exact[1].T, LABELS), exact)
    assert fast[0].dtype == torch.float32
    limit = 1e-5 if dtype == torch.float32 else 0.03
    for found, expected in zip(fast, plain, strict=True):
        assert (found.double() - expected).norm() < limit * expected.norm()


def assert_near(found: Tensor, right: Tensor, given: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    """Compare a sum and its gradients with those in float64."""
    dtype = given[0].dtype
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    assert abs(found.double() - right) < limit * right
    gradients = [torch.autograd.grad(-3 * value, leaves) for value, leaves in ((found, given), (right, exact))]
    for gradient, expected in zip(*gradients, strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - expected).norm() < limit * expected.norm()


@pytest.mark.parametrize("chunk_size", [1, 4, N, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_sum(chunk_size: int, dtype: torch.dtype) -> None:
    given = tensors(dtype)
    exact = tuple(value.detach().double().requires_grad_() for value in given)
    right = token_nll(exact[0] @ exact[1].T, LABELS).sum()
    found = chunked_nll_sum(*given, LABELS, chunk_size)
    assert_near(found, right, given, exact)


def a_reference(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Hidden states and projection of a model with another hidden size."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, H + 2, generator=generator, dtype=torch.float64).to(dtype) for n in (N, V))
    return hidden.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize("chunk_size", [1, 4, N, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_divergence(chunk_size: int, dtype: torch.dtype) -> None:
    given, frozen = tensors(dtype), a_reference(dtype)
    exact, there = (tuple(value.detach().double().requires_grad_() for value in pair) for pair in (given, frozen))
    right = token_kl(exact[0] @ exact[1].T, there[0] @ there[1].T).sum()
    found = chunked_kl_sum(*given, *frozen, chunk_size)
    assert_near(found, right, given, exact)
    assert not chunked_kl_sum(given[0].detach(), given[1].detach(), *frozen, chunk_size).requires_grad


def test_a_model_does_not_diverge_from_itself() -> None:
    given = tensors(torch.float32)
    same = chunked_kl_sum(*given, *given, 4)
    assert same == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(same, given))


@pytest.mark.parametrize("depth", [50.0, 95.0, 110.0, 1000.0])
def test_a_divergence_between_models_that_are_sure_of_different_tokens(depth: float) -> None:
    weight = torch.tensor([[0.0], [-1.0]])
    for here, there in ((0.0, depth), (depth, 0.0), (depth, -depth)):
        given = torch.tensor([[here]], requires_grad=True), weight.clone().requires_grad_()
        exact = tuple(value.detach().double().requires_grad_() for value in given)
        frozen = torch.tensor([[there]])
        found = chunked_kl_sum(*given, frozen, weight)
        right = token_kl(exact[0] @ exact[1].T, frozen.double() @ weight.double().T).sum()
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6)
        gradients = torch.autograd.grad(found, given), torch.autograd.grad(right, exact)
        for gradient, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_small_divergence_is_precise() -> None:
    given = tensors(torch.float32)
    near = given[0].detach() * (1 + 1e-4)
    exact = [value.detach().double().requires_grad_() for value in given]
    right = token_kl(exact[0] @ exact[1].T, near.double() @ exact[1].T).sum()
    found = chunked_kl_sum(*given, near, given[1], 4)
    expected = torch.autograd.grad(right, exact)
    for gradient, wanted in zip(torch.autograd.grad(found, given), expected, strict=True):
        assert (gradient.double() - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("leaf", [0, 1])
def test_the_sum_with_one_gradient_or_none(leaf: int) -> None:
    given = tensors()
    expected = torch.autograd.grad(token_nll(given[0] @ given[1].T, LABELS).sum(), given)[leaf]
    given[1 - leaf].requires_grad_(False)
    chunked_nll_sum(*given, LABELS, 4).backward()
    torch.testing.assert_close(given[leaf].grad, expected, rtol=1e-10, atol=1e-10)
    given[leaf].requires_grad_(False)
    assert not chunked_nll_sum(*given, LABELS, 4).requires_grad


@pytest.mark.parametrize("chunk_size", [2, 100])
def test_gradcheck(chunk_size: int) -> None:
    hidden, weight = tensors()
    labels = torch.tensor([0, 7, 7])
    small = (hidden[:3, :2], weight[:9, :2])
    assert torch.autograd.gradcheck(lambda x, w: chunked_nll(x, w, labels, chunk_size), small)


@pytest.mark.parametrize("chunk_size", [4, 100])
@pytest.mark.parametrize("leaf", [0, 1])
def test_only_the_gradient_that_is_needed(leaf: int, chunk_size: int) -> None:
    given = tensors()
    expected = value_and_gradients(token_nll(given[0] @ given[1].T, LABELS), given)[1 + leaf]
    given[1 - leaf].requires_grad_(False)
    (chunked_nll(*given, LABELS, chunk_size) * UPSTREAM).sum().backward()
    torch.testing.assert_close(given[leaf].grad, expected, rtol=1e-10, atol=1e-10)
    assert given[1 - leaf].grad is None


def test_a_certain_token_and_an_impossible_one() -> None:
    weight = torch.zeros(4, 1)
    weight[1] = 100.0
    nll = chunked_nll(torch.ones(2, 1), weight, torch.tensor([1, 0]))
    assert nll.tolist() == [0.0, 100.0]


def test_under_autocast() -> None:
    given = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        nll = chunked_nll(*given, LABELS, 4)
    low = [value.detach().bfloat16() for value in given]
    assert torch.equal(nll.detach(), chunked_nll(*low, LABELS, 4))
    assert all(value.dtype == torch.float32 for value in value_and_gradients(nll, given))


def test_no_positions() -> None:
    hidden, weight = tensors()
    there, projection = a_reference()
    for none in (
        chunked_nll(hidden[:0], weight, LABELS[:0]).sum(),
        chunked_nll_sum(hidden[:0], weight, LABELS[:0]),
        chunked_kl_sum(hidden[:0], weight, there[:0], projection),
    ):
        hidden.grad = weight.grad = None
        none.backward()
        assert none == 0
        assert (hidden.grad == 0).all()
        assert (weight.grad == 0).all()


def test_errors() -> None:
    hidden, weight = tensors()
    with pytest.raises(InputError, match="chunk_size"):
        chunked_nll(hidden, weight, LABELS, 0)
    with pytest.raises(InputError, match="do not fit"):
        chunked_nll(hidden[:, 1:], weight, LABELS)
    with pytest.raises((IndexError, RuntimeError), match="-100|index"):
        chunked_nll(hidden, weight, torch.full((N,), -100))
    there, projection = a_reference()
    with pytest.raises(InputError, match="11 positions and 150 tokens, the reference 10 and 150"):
        chunked_kl_sum(hidden, weight, there[1:], projection)
    with pytest.raises(InputError, match="chunk_size"):
        chunked_kl_sum(hidden, weight, there, projection, -1)
    with pytest.raises(InputError, match="reference hidden states .* do not fit"):
        chunked_kl_sum(hidden, weight, there[:, 1:], projection)
