"""The DiPO loss against the definitions it is derived from."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dipo_lightning.errors import InputError
from dipo_lightning.losses.chunking import sequence_sum
from dipo_lightning.methods.dipo.loss import dipo_loss
from dipo_lightning.methods.dipo.pair import PairOptions, make_pair, pair_parts
from tests.helpers.plain_dipo import dipo_logit_gradient, margin, pair_difference, rewards, sequence_kl_margin

N, V, COUNT = 9, 23, 4
ROWS = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])  # row 2 has no answer token
OPTIONS = [
    PairOptions("top_k", k=4, alpha=0.7),
    PairOptions("top_p", p=0.6, alpha=1.5, memory_vector="raw"),
    PairOptions("relative", rho=0.3),
]


def logits(seed: int) -> Tensor:
    return 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REFERENCE, POLICY = logits(0), logits(1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of one position, from probabilities."""
    return sum((a * (a / b).log() for a, b in zip(p, q, strict=True)), torch.zeros((), dtype=p.dtype))


def margin_by_loop(policy_logits: Tensor, options: PairOptions, reduction: str) -> Tensor:
    """The definition of the margin, position by position, from probabilities alone."""
    preferred, dispreferred = (member.exp() for member in make_pair(REFERENCE, options))
    policy, reference = policy_logits.softmax(-1), REFERENCE.softmax(-1)
    result = []
    for row in range(COUNT):
        places = (row == ROWS).nonzero().flatten().tolist()
        terms = [
            kl(dispreferred[t], policy[t])
            - kl(preferred[t], policy[t])
            - kl(dispreferred[t], reference[t])
            + kl(preferred[t], reference[t])
            for t in places
        ]
        total = sum(terms, torch.zeros((), dtype=torch.float64))
        result.append(total / max(len(places), 1) if reduction == "mean" else total)
    return torch.stack(result)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("options", OPTIONS)
def test_three_forms_of_the_margin_agree(options: PairOptions, reduction: str) -> None:
    expected = margin_by_loop(POLICY, options, reduction)
    fast = margin(pair_difference(REFERENCE, options), POLICY, REFERENCE, ROWS, COUNT, reduction)
    literal = sequence_kl_margin(*make_pair(REFERENCE, options), POLICY, REFERENCE, ROWS, COUNT, reduction)
    torch.testing.assert_close(fast, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(literal, expected, rtol=0, atol=1e-10)
    assert expected[2] == 0
    assert expected[[0, 1, 3]].abs().min() > 0.1


@pytest.mark.parametrize("options", OPTIONS)
def test_rewards_are_the_definition_up_to_nothing(options: PairOptions) -> None:
    beta = 0.3
    policy, reference = POLICY.softmax(-1), REFERENCE.softmax(-1)
    token_reward = beta * (policy / reference).log() + beta * (reference * (reference / policy).log()).sum(-1, True)
    found = rewards(*pair_parts(REFERENCE, options), POLICY, REFERENCE, beta)
    for member, reward in zip(make_pair(REFERENCE, options), found, strict=True):
        torch.testing.assert_close(reward, (member.exp() * token_reward).sum(-1), rtol=0, atol=1e-10)
    u = margin(pair_difference(REFERENCE, options), POLICY, REFERENCE, ROWS, COUNT)
    torch.testing.assert_close(sequence_sum(found[0] - found[1], ROWS, COUNT), beta * u, rtol=0, atol=1e-10)


def test_rewards_of_a_pair_made_from_the_policy() -> None:
    found = rewards(*pair_parts(POLICY, OPTIONS[0], REFERENCE), POLICY, REFERENCE, 1.0)
    policy, reference = POLICY.softmax(-1), REFERENCE.softmax(-1)
    token_reward = (policy / reference).log() + (reference * (reference / policy).log()).sum(-1, True)
    for member, reward in zip(make_pair(POLICY, OPTIONS[0]), found, strict=True):
        torch.testing.assert_close(reward, (member.exp() * token_reward).sum(-1), rtol=0, atol=1e-10)


def loss_of(policy: Tensor, options: PairOptions, beta: float, scale: Any, reduction: str) -> Tensor:
    return dipo_loss(
        margin(pair_difference(REFERENCE, options), policy, REFERENCE, ROWS, COUNT, reduction), beta, scale
    )


@pytest.mark.parametrize("scale", ["2/beta", 1])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_is_the_closed_form(scale: Any, reduction: str) -> None:
    policy = POLICY.clone().requires_grad_()
    options, beta = OPTIONS[0], 0.4
    assert torch.autograd.gradcheck(lambda x: loss_of(x, options, beta, scale, reduction), (policy,))
    loss_of(policy, options, beta, scale, reduction).sum().backward()
    difference = pair_difference(REFERENCE, options)
    u = margin_by_loop(POLICY, options, reduction)
    closed = dipo_logit_gradient(u, difference, ROWS, beta, scale, reduction)
    torch.testing.assert_close(policy.grad, closed, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS)
def test_at_the_reference(options: PairOptions) -> None:
    policy = REFERENCE.clone().requires_grad_()
    beta = 0.4
    loss = loss_of(policy, options, beta, 1, "sum")
    assert torch.equal(loss, torch.full((COUNT,), math.log(2), dtype=torch.float64))
    loss.sum().backward()
    log_preferred, log_dispreferred = make_pair(REFERENCE, options)
    expected = -(beta / 2) * (log_preferred.exp() - log_dispreferred.exp())
    torch.testing.assert_close(policy.grad, expected, rtol=0, atol=1e-10)


def test_constants_on_all_logits_change_nothing() -> None:
    shift = torch.linspace(-30, 30, N, dtype=torch.float64).unsqueeze(-1)

    def u(reference: Tensor, policy: Tensor) -> Tensor:
        return margin(pair_difference(reference, OPTIONS[0]), policy, reference, ROWS, COUNT)

    expected = u(REFERENCE, POLICY)
    torch.testing.assert_close(u(REFERENCE + shift, POLICY), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(u(REFERENCE, POLICY - shift), expected, rtol=0, atol=1e-10)


def test_gradient_vanishes_with_alpha() -> None:
    sizes = []
    for alpha in (1e-2, 1e-4, 1e-6):
        policy = POLICY.clone().requires_grad_()
        loss_of(policy, PairOptions("top_k", k=4, alpha=alpha), 0.4, "2/beta", "sum").sum().backward()
        sizes.append(policy.grad.abs().max().item())
    assert sizes[0] > 0
    assert sizes[1] == pytest.approx(sizes[0] / 100, rel=0.2)
    assert sizes[2] == pytest.approx(sizes[1] / 100, rel=0.2)


def test_prompt_and_padding_contribute_exactly_nothing() -> None:
    """Through an embedding and a projection: ids that stand in unselected places only get no gradient at all."""
    torch.manual_seed(0)
    embedding = nn.Embedding(40, 8, dtype=torch.float64)
    head = nn.Linear(8, V, bias=False, dtype=torch.float64)
    reference_head = torch.randn(V, 8, dtype=torch.float64)
    ids = torch.tensor([[1, 2, 11, 12, 13], [3, 14, 15, 0, 0]])  # 1, 2, 3 prompt, 0 padding
    selected = ids >= 11

    def losses(ids: Tensor) -> Tensor:
        rows = selected.nonzero()[:, 0]
        hidden = embedding(ids)[selected]
        reference = hidden.detach() @ reference_head.T
        return dipo_loss(margin(pair_difference(reference, OPTIONS[0]), head(hidden), reference, rows, 2), 0.1)

    first = losses(ids)
    first.sum().backward()
    assert (embedding.weight.grad[[0, 1, 2, 3]] == 0).all()
    assert (embedding.weight.grad[[11, 12, 13, 14, 15]] != 0).all()
    changed = torch.where(selected, ids, 30)
    assert torch.equal(losses(changed), first)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_descent_step_moves_towards_the_preferred(options: PairOptions) -> None:
    preferred, dispreferred = make_pair(REFERENCE, options)

    def gap(policy: Tensor) -> Tensor:
        policy = policy.log_softmax(-1)
        return (preferred.exp() * (preferred - policy) - dispreferred.exp() * (dispreferred - policy)).sum()

    policy = REFERENCE.clone().requires_grad_()
    for _ in range(3):
        before = gap(policy.detach())
        loss = loss_of(policy, options, 0.1, "2/beta", "sum").sum()
        (gradient,) = torch.autograd.grad(loss, policy)
        policy = (policy - 0.1 * gradient).detach().requires_grad_()
        assert gap(policy.detach()) < before - 1e-3


def test_dtypes() -> None:
    low = REFERENCE.bfloat16()
    u = margin(pair_difference(low, OPTIONS[0]), POLICY.bfloat16(), low, ROWS, COUNT)
    assert u.dtype == torch.float32
    torch.testing.assert_close(u.double(), margin_by_loop(POLICY, OPTIONS[0], "sum"), rtol=0.05, atol=0.2)
    assert margin(pair_difference(low, OPTIONS[0]), low, low, ROWS, COUNT).tolist() == [0.0] * COUNT


def test_far_margins_stay_finite() -> None:
    u = torch.tensor([1e6, -1e6], requires_grad=True)
    loss = dipo_loss(u, 1.0, 1)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1e6]
    assert u.grad.tolist() == [0.0, -1.0]


def test_errors() -> None:
    with pytest.raises(InputError, match="beta is 0"):
        dipo_loss(torch.zeros(1), 0.0)
    with pytest.raises(InputError, match="scale is '2'"):
        dipo_loss(torch.zeros(1), 0.1, "2")
    with pytest.raises(InputError, match="reduction"):
        margin(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 1, "max")
