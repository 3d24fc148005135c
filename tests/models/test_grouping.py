"""Forwards in groups: fewest tokens, and the states and gradients of one forward, in every family."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

import dipo_lightning.models.grouping as module
from dipo_lightning.models.answers import TokenBatch, answer_hidden, collate
from dipo_lightning.models.distributed import checkpoint_activations
from dipo_lightning.models.grouping import Plan, forward_plan, length_groups, run_whole
from dipo_lightning.models.head import decoder
from dipo_lightning.models.lora import LoRA, add_lora
from tests.helpers.families import SIZES, family_model
from tests.helpers.toys import toy_model

BEGINNING = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
FAMILIES = ["llama", "gpt2", "gemma2", *sorted(SIZES)]
WITHOUT_CACHE = {"deepseek_v32", "mamba", "openai-gpt", "prophetnet", "roberta", "rwkv"}
"""Families that carry a state, or whose cache is of another kind or continues one token at a time."""


@pytest.mark.parametrize("cost", [0, 3, 10, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_groups_need_fewer_tokens(cost, seed, monkeypatch):
    monkeypatch.setattr(module, "FORWARD_TOKENS", cost)
    draw = random.Random(seed)
    lengths = [draw.randint(1, 20) for _ in range(5)]
    groups = length_groups(lengths)
    assert sorted(itertools.chain(*groups)) == list(range(5))
    assert all(group == sorted(group) for group in groups)

    def tokens(groups):
        return sum(len(group) * max(lengths[row] for row in group) + cost for group in groups)

    every = itertools.product(range(5), repeat=5)  # each row's group
    others = ([[row for row in range(5) if of[row] == group] for group in set(of)] for of in every)
    assert tokens(groups) == min(map(tokens, others))
    assert len(groups) == 1 or cost < 10**6


def batch_of(*lengths: int, beginning: list[int] = BEGINNING, others: int = 0) -> TokenBatch:
    """Rows that begin alike and go on for some tokens, the second half of which is supervised; ``others`` do not.

    In the third row a token after the beginning is masked.
    """
    draw = random.Random(1)
    rows = [[draw.randint(5, 60) for _ in range(length)] for length in lengths]
    examples = []
    for number, ids in enumerate(rows):
        first = beginning if number < len(rows) - others else []
        half = len(ids) // 2
        labels = [-100] * (len(first) + half) + ids[half:]
        examples.append({"input_ids": first + ids, "labels": labels, "index": 0})
    batch = collate(examples)
    batch["attention_mask"][2, len(beginning) + 1] = 0
    return batch


def states_and_gradients(model: torch.nn.Module, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    """Hidden states, the gradients of a loss on them, and the tokens of each training forward, padding included."""
    forwards: list[int] = []
    whole = decoder(model).forward

    def counted(*arguments, **options):
        if "input_ids" in options:  # the test of a shared beginning gives embeddings
            forwards.append(options["input_ids"].numel())
        return whole(*arguments, **options)

    run = decoder(model)
    run.forward = counted  # type: ignore[method-assign]
    try:
        hidden = answer_hidden(model, batch)
    finally:
        run.forward = whole  # type: ignore[method-assign]
    model.zero_grad()
    weights = torch.arange(hidden.numel(), dtype=hidden.dtype).reshape(hidden.shape).cos()
    (hidden * weights).sum().backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return hidden.detach(), found, forwards


def assert_equals_one_forward(
    model: torch.nn.Module, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch, cost: int = 4
) -> list[int]:
    """Compare states and gradients with those of one forward, and return the tokens of each forward."""
    monkeypatch.setattr(module, "FORWARD_TOKENS", 10**6)
    hidden, gradients, forwards = states_and_gradients(model, batch)
    assert forwards == [batch["input_ids"].numel()]
    monkeypatch.setattr(module, "FORWARD_TOKENS", cost)
    found, grouped, forwards = states_and_gradients(model, batch)
    # Rounding beside the largest entry, for small ones are sums of large ones; some families compute in float32 inside.
    torch.testing.assert_close(found, hidden, rtol=1e-5, atol=1e-6 * float(hidden.abs().max()))
    assert grouped.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in grouped.items():
        scale = max(float(gradients[name].abs().max()), largest / 100)  # a key's bias has a gradient of 0
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-5 * scale, msg=name)
    return forwards


def exact(family: str) -> torch.nn.Module:
    """A small model of a family, in float64 where it can be."""
    model = (family_model(family) if family in SIZES else toy_model(family)).eval()
    return model if family in ("gpt_oss", "prophetnet") else model.double()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_similar_length_run_together_with_the_same_result(family, monkeypatch):
    batch = batch_of(9, 4, 20, 5, 8, 21, beginning=[])
    assert assert_equals_one_forward(exact(family), batch, monkeypatch) == [2 * 5, 2 * 9, 2 * 21]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_beginning_runs_once_with_the_same_result(family, monkeypatch):
    batch = batch_of(7, 3, 8, 3, 7, 8, beginning=BEGINNING[:8])  # 16 tokens, among which DeepSeek does not select
    forwards = assert_equals_one_forward(exact(family), batch, monkeypatch, cost=1)
    assert forwards == ([2 * 11, 2 * 15, 2 * 16] if family in WITHOUT_CACHE else [8, 2 * 3, 2 * 7, 2 * 8])


def test_rows_that_begin_otherwise_run_from_their_first_token(monkeypatch):
    forwards = assert_equals_one_forward(exact("llama"), batch_of(9, 4, 20, 5, 8, 21, others=2), monkeypatch)
    assert forwards == [10, 4 + 5 + 1, 9, 20, 8, 21]


def test_few_tokens_run_at_once(monkeypatch):
    assert assert_equals_one_forward(toy_model(), batch_of(9, 4, 20), monkeypatch, cost=128) == [90]


@pytest.mark.parametrize("place", [0, 9])
def test_a_masked_token_is_not_shared(monkeypatch, place):
    batch = batch_of(9, 4, 20, 5, 8, 21)
    batch["attention_mask"][1, place] = 0
    forwards = assert_equals_one_forward(exact("llama"), batch, monkeypatch)
    assert forwards[0] == (9 if place else 10)


def test_states_inside_a_beginning_are_computed_for_each_row(monkeypatch):
    batch = batch_of(9, 4, 20, 5, 8, 21)
    batch["labels"][3, 9:] = batch["input_ids"][3, 9:]
    assert assert_equals_one_forward(exact("llama"), batch, monkeypatch)[0] == 8


def test_adapters_get_the_same_gradient(monkeypatch):
    model = add_lora(exact("llama"), LoRA(rank=2))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    assert assert_equals_one_forward(model, batch_of(9, 4, 20, 5, 8, 21), monkeypatch)[0] == 10


def test_recomputed_activations_have_no_cache(monkeypatch):
    model = exact("llama").train()
    checkpoint_activations(model)
    assert assert_equals_one_forward(model, batch_of(9, 4, 20, 5, 8, 21), monkeypatch) == [2 * 15, 2 * 19, 2 * 31]


def test_blocks_that_are_recomputed_have_no_cache(monkeypatch):
    model = exact("llama").train()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    checkpoint_activations(model)
    assert assert_equals_one_forward(model, batch_of(9, 4, 20, 5, 8, 21), monkeypatch) == [2 * 15, 2 * 19, 2 * 31]


def forwards_of(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(module, "FORWARD_TOKENS", 4)
    return states_and_gradients(model, batch_of(9, 4, 20, 5, 8, 21))[2]


def test_dropout_is_drawn_for_each_row(monkeypatch):
    model = exact("gpt2")
    assert forwards_of(model, monkeypatch)[0] == 10
    model.train()
    assert forwards_of(model, monkeypatch)[0] == 10, "without dropout"
    decoder(model).drop.p = 0.1
    assert forwards_of(model, monkeypatch) == [2 * 15, 2 * 19, 2 * 31]


def test_hooks_see_the_whole_batch(monkeypatch):
    model = exact("llama")
    seen: list[int] = []
    handle = decoder(model).layers[0].register_forward_hook(lambda *found: seen.append(len(found[1][0])))
    assert forwards_of(model, monkeypatch) == [6 * 31]
    assert seen == [6]
    handle.remove()
    assert forwards_of(model, monkeypatch)[0] == 10


def test_hooks_that_collect_outputs_for_transformers_need_no_whole_batch(monkeypatch):
    model = exact("llama")
    model(input_ids=torch.arange(5)[None], output_hidden_states=True)
    assert any(module._forward_hooks for module in decoder(model).modules()), "they stay"
    assert forwards_of(model, monkeypatch)[0] == 10


def test_a_model_may_ask_for_one_forward(monkeypatch):
    model = exact("llama")
    run_whole(model)
    assert forwards_of(model, monkeypatch) == [6 * 31]


def test_a_row_that_ends_inside_the_beginning_keeps_its_last_token(monkeypatch):
    rows = [BEGINNING, BEGINNING + [20, 21, 22], BEGINNING + [30, 31]]
    labels = [[-100] * 10, [-100] * 11 + [21, 22], [-100] * 11 + [31]]
    batch = collate([{"input_ids": a, "labels": b, "index": 0} for a, b in zip(rows, labels, strict=True)])
    assert assert_equals_one_forward(exact("llama"), batch, monkeypatch, cost=1)[0] == 9


@pytest.mark.parametrize("family", ["gemma3_text", "phi3", "qwen2"])
def test_rows_longer_than_a_sliding_window_share_their_beginning(family, monkeypatch):
    model = family_model(family).double().eval()
    window = getattr(model.config, "sliding_window", None) or 24
    begin = [5 + place % 50 for place in range(window + 6)]
    batch = batch_of(40, 35, 50, 45, beginning=begin)
    assert assert_equals_one_forward(model, batch, monkeypatch)[0] == len(begin)


def test_rotary_embeddings_that_depend_on_the_length_of_a_row_share_nothing(monkeypatch):
    model = exact("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert forwards_of(model, monkeypatch) == [2 * 15, 2 * 19, 2 * 31]


def test_inference_mode_decides_nothing(monkeypatch):
    model = exact("llama")
    with torch.inference_mode():
        assert module._can_share(model)
    assert forwards_of(model, monkeypatch)[0] == 10


def test_bfloat16_products_are_tested_in_float32(monkeypatch):
    model = toy_model()
    with torch.autocast("cpu", torch.bfloat16):
        assert forwards_of(model, monkeypatch)[0] == 10


@pytest.mark.parametrize("family", ["llama", "rwkv"])
def test_whether_a_model_can_share_is_tested_once(family, monkeypatch):
    tried = []
    whole = module._try_out
    monkeypatch.setattr(module, "_try_out", lambda model: tried.append(0) or whole(model))
    model = exact(family)
    for _ in range(3):
        forwards_of(model, monkeypatch)
    assert len(tried) == 1


def test_a_family_whose_cache_cuts_the_gradient_runs_from_the_first_token(monkeypatch):
    from dipo_lightning.models import kv_cache

    whole = kv_cache.pairs
    monkeypatch.setattr(kv_cache, "pairs", lambda cache: [(keys.detach(), values) for keys, values in whole(cache)])
    assert forwards_of(exact("llama"), monkeypatch) == [2 * 15, 2 * 19, 2 * 31]


def plan_cost(plan: Plan, lengths: list[int], cost: int) -> int:
    groups = [(rows, plan.beginning) for rows in plan.sharing] + [(rows, 0) for rows in plan.others]
    tokens = sum(len(rows) * (max(lengths[row] for row in rows) - start) + cost for rows, start in groups)
    return tokens + (plan.beginning + cost if plan.beginning else 0)


@pytest.mark.parametrize("seed", range(8))
def test_a_beginning_is_shared_only_where_that_saves_tokens(seed, monkeypatch):
    draw = random.Random(seed)
    cost = draw.choice([1, 30, 128])
    monkeypatch.setattr(module, "FORWARD_TOKENS", cost)
    common, lengths = draw.randint(8, 30), [draw.randint(35, 60) for _ in range(draw.randint(2, 9))]
    beginnings = [[1] * common + [2 + row] * 3 for row in range(len(lengths))]
    plan = forward_plan(beginnings, lengths)
    assert sorted(itertools.chain(*plan.sharing, *plan.others)) == list(range(len(lengths)))
    rest = Plan(common, length_groups([length - common for length in lengths]), [])
    possible = [Plan(0, [], length_groups(lengths)), rest]
    assert plan_cost(plan, lengths, cost) == min(plan_cost(one, lengths, cost) for one in possible)
    assert plan.beginning in (0, common)


def test_the_beginning_with_the_most_tokens_to_save_is_shared(monkeypatch):
    monkeypatch.setattr(module, "FORWARD_TOKENS", 1)
    plan = forward_plan([[1] * 9, [1] * 9, [2] * 8 + [3], [2] * 8 + [4], [2] * 8], [12] * 5)
    assert plan == Plan(8, [[2, 3, 4]], [[0, 1]])
    assert forward_plan([[1] * 7] * 5, [12] * 5).beginning == 0, "too short"
    assert forward_plan([], []) == Plan(0, [], [])
