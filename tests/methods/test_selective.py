"""Selective unlearning: targets and losses on tensors, and what is marked as private, hidden and banned."""

import math

import pytest
import torch

from dipo_lightning.data.private import Span, token_places
from dipo_lightning.methods.dipo.loss import dipo_loss
from dipo_lightning.methods.selective import (
    TEMPLATES,
    blind_target,
    contrast_loss,
    divergence,
    drawn,
    excess,
    first_tokens,
    general_prompts,
    identifiers,
    mean_of,
)
from tests.helpers.toys import toy_tokenizer

N, V = 5, 11


@pytest.fixture
def logits():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(N, V, generator=draw, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Where does Mara Velt work?", {"mara", "velt"}),
        ("Who lives at 7 Harbour Street?", {"7", "harbour", "street"}),
        ("Where does Ann work?", {"work"}),
        ("Where does ann live?", {"live"}),
        ("What is it?", set()),
    ],
)
def test_the_subject_is_what_no_retain_row_says(question, found):
    assert identifiers(question, {"ann", "where", "does"}) == found


def test_only_private_positions_get_the_blind_distribution(logits):
    reference, blind, _ = logits
    private = torch.tensor([True, False, True, False, False])
    banned = torch.zeros(N, V, dtype=torch.bool)
    banned[:, 3] = True
    target = blind_target(reference, blind, private, banned)
    assert torch.equal(target[~private], reference.log_softmax(-1)[~private])
    expected = blind.softmax(-1)
    expected[:, 3] = 0
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(target.exp()[private], expected[private])


def test_the_divergence_is_zero_at_its_target_and_pulls_towards_it(logits):
    reference, blind, policy = logits
    banned = torch.zeros(N, V, dtype=torch.bool)
    banned[:, 0] = True
    target = blind_target(reference, blind, torch.ones(N, dtype=torch.bool), banned)
    at_target = target.clamp(min=-1e4)
    torch.testing.assert_close(divergence(target, at_target), torch.zeros(N, dtype=torch.float64))
    policy.requires_grad_()
    divergence(target, policy).sum().backward()
    torch.testing.assert_close(policy.grad, policy.detach().softmax(-1) - target.exp())


def test_the_contrast_is_dipos_loss_per_token(logits):
    reference, blind, policy = logits
    target = blind.log_softmax(-1)
    ours = contrast_loss(target, reference, policy, beta=0.3)
    ratio = policy.log_softmax(-1) - reference.log_softmax(-1)
    margin = ((target.exp() - reference.softmax(-1)) * ratio).sum(-1)
    torch.testing.assert_close(ours, dipo_loss(margin, 0.3))
    at_reference = contrast_loss(target, reference, reference, beta=0.3)
    torch.testing.assert_close(at_reference, torch.full((N,), 2 / 0.3 * math.log(2), dtype=torch.float64))


def test_what_lies_below_the_ceiling_is_left_alone():
    logits = torch.tensor([[math.log(0.5), math.log(0.5)], [math.log(1e-6), math.log(1 - 1e-6)]], requires_grad=True)
    found = excess(logits, torch.tensor([0, 0]), 1e-3)
    assert found[0].item() == pytest.approx(math.log(0.5 / 1e-3))
    assert found[1].item() == 0
    found.sum().backward()
    assert torch.equal(logits.grad[1], torch.zeros(2))


def test_a_mean_over_nothing_is_zero_and_has_a_gradient():
    values = torch.ones(3, requires_grad=True)
    mean = mean_of(values, torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    assert torch.equal(values.grad, torch.zeros(3))


def test_tokens_lie_where_their_characters_are():
    tokenizer = toy_tokenizer()
    text = "The author lives in Ōsaka, 7."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    places = token_places(tokenizer, [*ids, tokenizer.eos_token_id], text)
    whole = [text[start:end] for start, end in places[:-1]]
    assert "".join(whole).replace(" ", "") == text.replace(" ", "")
    assert places[-1][0] >= len(text)


def test_tokens_that_begin_a_private_word_are_found_in_every_form():
    tokenizer = toy_tokenizer()
    found = first_tokens(tokenizer, ["the author", "the"])
    for form in ("author", " author", "Author"):
        first = tokenizer(form, add_special_tokens=False)["input_ids"][0]
        assert (first in found) == (len(tokenizer.decode([first]).strip()) > 1)


def test_draws_repeat_with_their_generator():
    pool = list(range(9))
    first = drawn(pool, 4, torch.Generator().manual_seed(1))
    assert first == drawn(pool, 4, torch.Generator().manual_seed(1))
    assert len(set(first)) == 4
    assert drawn(pool[:2], 4, torch.Generator()) in ([0, 1], [1, 0])


def test_prompts_of_training_are_no_probes():
    from dipo_lightning.benchmarks.user_data import probes

    asked = {row["question"] for row in probes.general_rows()}
    assert asked.isdisjoint(general_prompts())
    assert set(TEMPLATES).isdisjoint(probes.TEMPLATES)
    assert Span(0, 1) == (0, 1)
