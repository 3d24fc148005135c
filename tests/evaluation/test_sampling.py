"""Sampling: each continuation is drawn token by token from its own prompt's distribution, whatever is beside it."""

import numpy as np
import pytest
import torch

from dipo_lightning.evaluation.sampling import draw_tokens, hash_seed, sample
from tests.helpers.toys import toy_model

PROMPTS = [[1, 20, 21, 22], [1, 30], [1, 40, 41, 42, 43, 44], [1, 50, 51, 52]]


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, -1.0, -torch.inf, 2.0])
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    drawn = torch.bincount(draw_tokens(logits.expand(20000, -1), uniform), minlength=5) / 20000
    torch.testing.assert_close(drawn.float(), logits.softmax(-1), rtol=0, atol=1e-3)


def expected(model, prompt, seed, samples, tokens, stop, temperature=1.0, banned=(), hidden=()):
    """Continuations from the definition: a forward of the whole text for every token."""
    numbers = torch.Generator().manual_seed(seed)
    uniform = [torch.rand(samples, generator=numbers, dtype=torch.float64) for _ in range(tokens)]
    found = []
    for row in range(samples):
        ids, said = list(prompt), []
        for place in range(tokens):
            mask = torch.tensor([[int(i not in hidden) for i in range(len(ids))]])
            with torch.no_grad():
                logits = model(torch.tensor([ids]), attention_mask=mask).logits[0, -1].double()
            logits[list(banned)] = -torch.inf
            p = (logits / temperature).softmax(-1).numpy()
            token = int(np.searchsorted(p.cumsum() / p.sum(), uniform[place][row].item(), side="right"))
            if token == stop:
                break
            said.append(token)
            ids.append(token)
        found.append(said)
    return found


def test_samples_are_drawn_token_by_token_from_the_whole_text():
    model = toy_model()
    said = sample(model, PROMPTS, samples=3, max_new_tokens=6, stop_ids=[2], seeds=[4, 5, 6, 7], temperature=0.7)
    for prompt, seed, own in zip(PROMPTS, [4, 5, 6, 7], said, strict=True):
        assert own == expected(model, prompt, seed, 3, 6, 2, temperature=0.7)


def test_samples_that_end_early_leave_the_batch_and_disturb_nobody():
    model = toy_model()
    with torch.no_grad():
        model.lm_head.weight[2] *= 3  # the stop token is said often
    said = sample(model, PROMPTS, samples=8, max_new_tokens=12, stop_ids=[2], seeds=[1, 2, 3, 4])
    assert len({len(one) for own in said for one in own}) > 3
    for prompt, seed, own in zip(PROMPTS, [1, 2, 3, 4], said, strict=True):
        assert own == expected(model, prompt, seed, 8, 12, 2)


def test_a_prompt_says_the_same_alone_and_in_company():
    model = toy_model()
    together = sample(model, PROMPTS, samples=2, max_new_tokens=5, stop_ids=[2], seeds=[1, 2, 3, 4])
    alone = [
        sample(model, [prompt], samples=2, max_new_tokens=5, stop_ids=[2], seeds=[seed])[0]
        for prompt, seed in zip(PROMPTS, [1, 2, 3, 4], strict=True)
    ]
    assert together == alone


def test_hidden_tokens_are_not_seen_and_banned_ones_not_said():
    model = toy_model()
    visible = [[int(i != 1) for i in range(len(prompt))] for prompt in PROMPTS]
    banned = [list(range(number * 40, 200)) for number in range(len(PROMPTS))]
    said = sample(
        model, PROMPTS, samples=3, max_new_tokens=5, stop_ids=[2], seeds=[9, 8, 7, 6], visible=visible, banned=banned
    )
    for number, (prompt, seed) in enumerate(zip(PROMPTS, [9, 8, 7, 6], strict=True)):
        assert said[number] == expected(model, prompt, seed, 3, 5, 2, banned=banned[number], hidden=(1,))
        assert not set(sum(said[number], [])) & set(banned[number])


def test_what_is_banned_at_the_beginning_may_follow_it():
    model = toy_model()
    everything = range(model.config.vocab_size)
    first = [[token for token in everything if token not in {30 + place, 31 + place}] for place in range(4)]
    options = {"samples": 8, "max_new_tokens": 6, "stop_ids": [2], "seeds": [4, 5, 6, 7]}
    said = sample(model, PROMPTS, banned_first=first, **options)
    for place, answers in enumerate(said):
        assert {answer[0] for answer in answers} <= {30 + place, 31 + place}
        assert {token for answer in answers for token in answer[1:]} & set(first[place])


def test_with_the_largest_min_p_only_the_likeliest_token_is_sampled():
    model = toy_model()
    options = {"samples": 3, "max_new_tokens": 6, "stop_ids": []}
    likeliest, low = (sample(model, PROMPTS, min_p=p, seeds=[4, 5, 6, 7], **options) for p in (1.0, 0.05))
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    assert {answer[0] for answer in likeliest[0]} == {int(logits.argmax())}
    assert all(len({tuple(answer) for answer in answers}) == 1 for answers in likeliest)
    chances = logits.softmax(-1)
    assert all(chances[answer[0]] >= 0.05 * chances.max() for answer in low[0])


def test_an_observer_sees_the_logits_of_every_position_of_each_continuation():
    model, seen, texts = toy_model(), {}, {}
    with torch.no_grad():
        model.lm_head.weight[2] *= 3

    def observe(numbers, logits, so_far):
        for number, row, ids in zip(numbers, logits, so_far, strict=True):
            seen.setdefault(number, []).append(row)
            texts.setdefault(number, []).append(list(ids))

    said = sample(model, PROMPTS, samples=3, max_new_tokens=5, stop_ids=[2], seeds=[1, 2, 3, 4], observe=observe)
    for number, ids in enumerate(one for own in said for one in own):
        prompt = PROMPTS[number // 3]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 :][:5]
        torch.testing.assert_close(torch.stack(seen[number]), logits)
        assert texts[number] == [ids[:place] for place in range(len(logits))]


@pytest.mark.parametrize("family", ["gpt2", "mistral", "opt"])
def test_other_families_say_the_same_in_company(family):
    model = toy_model(family)
    said = sample(model, PROMPTS, samples=2, max_new_tokens=4, stop_ids=[2], seeds=[1, 2, 3, 4])
    for prompt, seed, own in zip(PROMPTS, [1, 2, 3, 4], said, strict=True):
        assert own == expected(model, prompt, seed, 2, 4, 2)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_continuation_ends_where_the_table_of_positions_ends(family):
    field = "n_positions" if family == "gpt2" else "max_position_embeddings"
    model = toy_model(family, **{field: 32})
    prompts = [[5] * length for length in (28, 31, 32, 40, 4, 9)]
    found = sample(model, prompts, samples=2, max_new_tokens=6, stop_ids=[], seeds=range(6))
    assert [[len(said) for said in one] for one in found] == [[4] * 2, [1] * 2, [0] * 2, [0] * 2, [6] * 2, [6] * 2]
    for place, tokens in ((0, 4), (4, 6)):
        assert found[place] == expected(model, prompts[place], place, 2, tokens, None)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 10**9, 99999999999999, 2**64, -3, -(2**60)])
def test_a_seed_of_any_size_is_one_that_torch_takes_and_a_small_one_stays(seed):
    torch.Generator().manual_seed(hash_seed(seed, 5))
    if abs(seed) < 2**40:
        assert hash_seed(seed, 5) == seed * 1_000_003 + 5
