"""Scores of batches equal a plain computation of one row at a time, and leave no trace."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dipo_lightning.evaluation.scoring import score, token_statistics, tokens_at_once
from dipo_lightning.evaluation.shared_prompts import can_share_prompts
from dipo_lightning.models.distributed import evaluation_mode, own_batches, plan_batches
from tests.helpers.toys import FAMILIES, VOCABULARY, toy_model


def rows(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Rows of 3 to 30 tokens whose supervised part starts anywhere after the first token."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(3, 30))]
        start = draw.randrange(1, len(ids))
        made.append((ids, [-100] * start + ids[start:]))
    return made


def plain_score(model: torch.nn.Module, example: tuple[list[int], list[int]]) -> tuple[torch.Tensor, ...]:
    """One row alone, all logits, float64: log-probabilities, first choices, Min-K++ z-scores."""
    ids, labels = example
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    kept = torch.tensor(labels[1:]) != -100
    logp = logits.log_softmax(-1)[kept]
    chosen = logp[torch.arange(len(logp)), torch.tensor(labels[1:])[kept]]
    mean = (logp.exp() * logp).sum(-1)
    deviation = (logp.exp() * (logp - mean[:, None]) ** 2).sum(-1).sqrt()
    return chosen, logp.argmax(-1) == torch.tensor(labels[1:])[kept], (chosen - mean) / deviation


def rows_with_shared_prompts(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Five prompts of 8 to 20 tokens, each with one to seven answers; one answer has a token that is not scored."""
    draw = random.Random(seed)
    made = []
    for answers in (7, 1, 3, 5, 2):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(8, 20))]
        for _ in range(answers):
            answer = [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 9))]
            made.append((prompt + answer, [-100] * len(prompt) + answer))
    ids, labels = made[0]
    made[0] = ([*ids, 5, 6], [*labels, -100, 6])
    draw.shuffle(made)
    return made


def tokens_computed(model: torch.nn.Module, examples: list, **options: object) -> tuple[list, int, bool]:
    """Scores, the tokens that went through the model, and whether any answers shared a row."""
    seen, shared = [], []

    def watch(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(kwargs["input_ids"].numel())
        shared.append("position_ids" in kwargs)

    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    scores = score(model, examples, **options)
    handle.remove()
    return scores, sum(seen), any(shared)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_share_a_prompt_are_scored_as_if_alone(family: str, implementation: str) -> None:
    model = toy_model(family)
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip(f"transformers has no sdpa for {family}")
    model.set_attn_implementation(implementation)
    examples = rows_with_shared_prompts()
    score(model, examples)  # the layout is tried out once
    scores, computed, shared = tokens_computed(model, examples, batch_tokens=128, z_scores=range(18))
    assert shared
    assert computed < 0.8 * sum(len(ids) for ids, _ in examples)
    for example, got in zip(examples, scores, strict=True):
        logp, correct, z = plain_score(model, example)
        torch.testing.assert_close(got.logprobs.double(), logp, rtol=1e-5, atol=1e-5)
        assert torch.equal(got.correct, correct)
        torch.testing.assert_close(got.z_scores.double(), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_shared_prompts_in_bfloat16(mixed: bool) -> None:
    model = toy_model() if mixed else toy_model().bfloat16()
    examples = rows_with_shared_prompts()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        scores, _, shared = tokens_computed(model, examples)
    assert shared
    exact = score(toy_model(), examples)
    for one, other in zip(scores, exact, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0.05, atol=0.05)


def test_a_sliding_window_is_never_widened() -> None:
    model = toy_model("gemma2", sliding_window=20)
    examples = rows_with_shared_prompts(seed=1)
    scores, _, shared = tokens_computed(model, examples)
    assert shared, "short rows fit the window"
    for example, got in zip(examples, scores, strict=True):
        torch.testing.assert_close(got.logprobs.double(), plain_score(model, example)[0], rtol=1e-5, atol=1e-5)


def test_a_model_with_a_state_gets_a_row_for_each_answer() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1))
    assert not can_share_prompts(model)
    assert can_share_prompts(toy_model())


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_scores_equal_one_row_at_a_time(family: str) -> None:
    model = toy_model(family)
    examples = rows(17)
    scores = score(model, examples, batch_tokens=64, z_scores=range(17))
    for example, got in zip(examples, scores, strict=True):
        logp, correct, z = plain_score(model, example)
        torch.testing.assert_close(got.logprobs.double(), logp, rtol=1e-5, atol=1e-5)
        assert torch.equal(got.correct, correct)
        torch.testing.assert_close(got.z_scores.double(), z, rtol=1e-4, atol=1e-4)
        assert got.nll == pytest.approx(-logp.mean().item(), rel=1e-5)
        assert got.loss == pytest.approx(-logp.sum().item(), rel=1e-5)
        assert got.logprobs.dtype == torch.float32


def test_z_scores_only_where_asked_for() -> None:
    scores = score(toy_model(), rows(5), z_scores={1, 3})
    assert [s.z_scores is not None for s in scores] == [False, True, False, True, False]


def test_a_row_without_supervised_tokens_is_empty_and_nan() -> None:
    examples = [([5, 6, 7], [-100, -100, -100]), ([5, 6], [-100, 6])]
    empty, full = score(toy_model(), examples)
    assert empty.tokens == 0
    assert np.isnan(empty.nll)
    assert full.tokens == 1
    assert full.nll > 0


def test_order_of_rows_does_not_matter() -> None:
    model = toy_model()
    examples = rows(9)
    forward = score(model, examples)
    backward = score(model, examples[::-1])[::-1]
    for a, b in zip(forward, backward, strict=True):
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=1e-5, atol=1e-6)


def test_chunks_do_not_change_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(23, 50, generator=generator).bfloat16()
    labels = torch.randint(0, 50, (23,), generator=generator)
    wanted = torch.arange(23) % 2 == 0
    index = torch.arange(23)
    whole = token_statistics(logits, index, labels, wanted)
    parts = token_statistics(logits, index, labels, wanted, chunk_elements=150)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a, b)


def test_a_token_that_never_comes_leaves_z_scores_finite() -> None:
    logits = torch.tensor([[0.0, 1.0, float("-inf")]])
    logprobs, _, _, z = token_statistics(logits, torch.tensor([0]), torch.tensor([0]), torch.tensor([True]))
    assert torch.isfinite(logprobs).all()
    assert torch.isfinite(z).all()


def test_plan_holds_every_row_once_within_budget() -> None:
    lengths = [3, 50, 7, 7, 120, 1, 9]
    plan = plan_batches(lengths, 60)
    assert sorted(i for batch in plan for i in batch) == list(range(7))
    assert plan[0] == [4]  # the longest first, alone where it is over the budget
    for batch in plan[1:]:
        assert len(batch) * max(lengths[i] for i in batch) <= 60


def test_every_process_runs_the_same_number_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [[0], [1], [2], [3], [4]]
    seen = []
    for rank in range(3):
        monkeypatch.setattr("dipo_lightning.models.distributed.rank_and_world", lambda rank=rank: (rank, 3))
        seen.append(list(own_batches(plan)))
    assert [len(share) for share in seen] == [2, 2, 2]
    assert sorted(batch[0] for share in seen for batch, own in share if own) == [0, 1, 2, 3, 4]
    assert seen[2][1] == ([4], False)


@pytest.mark.parametrize("world", [1, 2])
def test_progress_counts_every_row_that_is_scored(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    model, examples, counts = toy_model(), rows(9), []
    whole = dict(enumerate(score(model, examples)))
    monkeypatch.setattr("dipo_lightning.models.distributed.rank_and_world", lambda: (0, world))
    monkeypatch.setattr("dipo_lightning.models.distributed.gather", lambda own: whole | own)
    score(model, examples, batch_tokens=64, progress=counts.append)
    assert sum(counts) == 9
    assert (counts[-1] > 0) == (world == 2), "the other process's rows are counted once it has given them"


def test_modes_and_random_states_come_back() -> None:
    model = toy_model().train()
    model.model.layers[0].eval()  # a frozen block of a user's
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3), np.random.rand(3), random.random()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error() -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    model = toy_model().train()
    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        score(model, [([5, 4], [-100, 4])])
    assert model.training


def window_rows() -> list[tuple[list[int], list[int]]]:
    """One question of 37 ids and three answers: 81, 41 and 45 ids in all."""
    draw = random.Random(0)
    prompt = [draw.randrange(3, VOCABULARY) for _ in range(37)]
    answers = [[draw.randrange(3, VOCABULARY) for _ in range(count)] for count in (44, 4, 8)]
    return [(prompt + answer, [-100] * 37 + answer) for answer in answers]


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_row_beyond_the_sliding_window_is_scored_alike_alone_and_in_company(family: str) -> None:
    model = toy_model(family, sliding_window=64)
    examples = window_rows()
    scores, _, shared = tokens_computed(model, examples)
    assert shared, "the two short answers fit the window together"
    for example, got in zip(examples, scores, strict=True):
        want, correct, _ = plain_score(model, example)
        torch.testing.assert_close(got.logprobs.double(), want, rtol=1e-5, atol=1e-5)
        assert torch.equal(got.correct, correct)
        assert got.nll == pytest.approx(score(model, [example])[0].nll, rel=1e-6)


def test_frequencies_that_depend_on_the_longest_row_of_a_batch() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0} | factors
    model = toy_model("llama", max_position_embeddings=128, rope_parameters=rope)
    examples = window_rows() + rows_with_shared_prompts()
    for example, got in zip(examples, score(model, examples), strict=True):
        torch.testing.assert_close(got.logprobs.double(), plain_score(model, example)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("share", "tokens"), [(100, 2048), (3000, 3000), (10**6, 8192)])
def test_a_forward_pass_on_a_gpu_has_as_many_tokens_as_the_logits_leave_room_for(share, tokens, monkeypatch):
    model = toy_model()
    assert tokens_at_once(model, torch.device("cpu")) == 2048
    card = SimpleNamespace(total_memory=8 * share * 4 * VOCABULARY)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert tokens_at_once(model, torch.device("cuda")) == tokens
