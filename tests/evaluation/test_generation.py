"""Batched decoding gives each prompt what it gives alone, and nothing of the model's own sampling habits."""

import logging
import random
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dipo_lightning.evaluation.generation import generate, rows_at_once
from dipo_lightning.evaluation.scoring import score
from tests.helpers.toys import EOS, FAMILIES, VOCABULARY, toy_model, toy_tokenizer

EOS_ID = toy_tokenizer().convert_tokens_to_ids(EOS)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[1] + [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 25))] for _ in range(count)]


def plain_generate(model: torch.nn.Module, prompt: list[int], limit: int, stop_ids: list[int]) -> list[int]:
    """Greedy decoding from its definition: no cache, no padding, one prompt."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(limit):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in stop_ids:
                break
            ids.append(token)
    return ids[len(prompt) :]


def stops_that_come(model: torch.nn.Module, asked: list[list[int]]) -> list[int]:
    """Tokens that this toy says at different places: its own EOS may never come."""
    said = [plain_generate(model, prompt, 12, []) for prompt in asked]
    return [EOS_ID, said[0][5], said[1][2], said[2][9]]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_equal_one_at_a_time(family: str) -> None:
    model = toy_model(family)
    asked = prompts(7)
    stop_ids = stops_that_come(model, asked)
    alone = [plain_generate(model, prompt, 12, stop_ids) for prompt in asked]
    assert len({len(said) for said in alone}) > 1  # rows end at different places
    assert generate(model, asked, max_new_tokens=12, stop_ids=stop_ids, batch_rows=3) == alone


def test_a_prompt_that_ends_like_a_filler_is_not_taken_for_a_padded_one() -> None:
    model, said = toy_model(), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("transformers.generation.utils")
    log.addHandler(handler)
    asked = [[1, 9, EOS_ID], [0, 7, 8, 5], [4, 5, 0], [6, 1]]  # reversed in the try-out, the second ends with 0
    try:
        found = [generate(model, asked, max_new_tokens=5, stop_ids=stops) for stops in ([], [EOS_ID])]
    finally:
        log.removeHandler(handler)
    assert said == []
    assert found == [[plain_generate(model, prompt, 5, stops) for prompt in asked] for stops in ([], [EOS_ID])]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_know_how_decoding_begins(family: str) -> None:
    model = toy_model(family)
    asked = prompts(9)
    stop_ids = stops_that_come(model, asked)
    alone = [plain_generate(model, prompt, 12, stop_ids) for prompt in asked]
    answers = []
    for number, said in enumerate(alone):  # what it will say itself, with a stop; with a wrong token; something else
        ended = [*said, *(stop_ids[:1] if len(said) < 12 else [])]
        wrong = [*said[:3], (said[3] + 1) % VOCABULARY if len(said) > 3 else 7, 5]
        answers.append((ended, wrong, [9, 8])[number % 3])
    examples = [(p + a, [-100] * len(p) + a) for p, a in zip(asked, answers, strict=True)]
    known = [found.greedy_start() for found in score(model, examples)]
    assert any(known[0])
    for start, said in zip(known, alone, strict=True):
        assert said[: len(start)] == start[: len(said)]
    computed = []
    handle = model.register_forward_pre_hook(lambda m, a, k: computed.append(len(k["input_ids"])), with_kwargs=True)
    assert generate(model, asked, max_new_tokens=12, stop_ids=stop_ids, known=known) == alone
    with_known = sum(computed)
    computed.clear()
    assert generate(model, asked, max_new_tokens=12, stop_ids=stop_ids) == alone
    handle.remove()
    assert with_known < sum(computed)


def test_an_answer_known_to_its_end_is_not_decoded() -> None:
    def refuse(*args: object) -> None:
        pytest.fail("the model was asked")

    model = toy_model()
    model.register_forward_pre_hook(refuse)
    got = generate(model, [[3, 4], [5]], max_new_tokens=3, stop_ids=[9], known=[[7, 9, 8], [6, 6, 6, 6]])
    assert got == [[7], [6, 6, 6]]


def test_stragglers_go_on_together_and_are_not_changed() -> None:
    model = toy_model()
    asked = prompts(40, seed=1)
    stop_ids = list(range(EOS_ID, VOCABULARY, 8))  # about an eighth of what a toy says
    alone = [plain_generate(model, prompt, 20, stop_ids) for prompt in asked]
    assert max(map(len, alone)) == 20  # some never stop
    rounds: list[int] = []
    got = generate(model, asked, max_new_tokens=20, stop_ids=stop_ids, batch_rows=16, progress=rounds.append)
    assert got == alone
    assert len(rounds) > 1
    assert sum(rounds) == 40


def test_expected_lengths_change_nothing() -> None:
    model = toy_model()
    asked = prompts(9)
    kwargs = {"max_new_tokens": 8, "stop_ids": [EOS_ID], "batch_rows": 4}
    assert generate(model, asked, **kwargs) == generate(model, asked, expected=[3, 1, 4, 1, 5, 9, 2, 6, 5], **kwargs)


def test_without_stop_ids_every_row_runs_to_its_end() -> None:
    said = generate(toy_model(), prompts(3), max_new_tokens=6, stop_ids=[])
    assert [len(ids) for ids in said] == [6, 6, 6]


def test_no_new_tokens_is_empty() -> None:
    assert generate(toy_model(), prompts(2), max_new_tokens=0, stop_ids=[EOS_ID]) == [[], []]


def test_a_prompt_without_room_for_an_answer_is_named() -> None:
    model = toy_model("gpt2", n_positions=16)
    with pytest.warns(UserWarning, match="1 of 2 prompts fill the model's 16 positions: their answers are empty"):
        full, short = generate(model, [[5] * 16, [5] * 14], max_new_tokens=4, stop_ids=[])
    assert (len(full), len(short)) == (0, 2)


def test_the_models_own_generation_settings_are_put_aside_and_come_back() -> None:
    model = toy_model()
    asked = prompts(4)
    alone = generate(model, asked, max_new_tokens=10, stop_ids=[EOS_ID])
    config = model.generation_config
    config.update(repetition_penalty=5.0, temperature=0.3, top_p=0.5, do_sample=True, max_length=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(model, asked, max_new_tokens=10, stop_ids=[EOS_ID]) == alone
    assert model.generation_config is config
    assert config.repetition_penalty == 5.0


def test_dropout_is_off_and_training_mode_comes_back() -> None:
    model = toy_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5)
    asked = prompts(3)
    alone = generate(model, asked, max_new_tokens=8, stop_ids=[])
    model.train()
    state = torch.get_rng_state()
    assert generate(model, asked, max_new_tokens=8, stop_ids=[]) == alone
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_peft_model_speaks_with_its_adapters() -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    policy = get_peft_model(toy_model(), lora)
    configs = policy.generation_config, policy.get_base_model().generation_config
    asked = prompts(5)
    alone = [plain_generate(policy, prompt, 10, [EOS_ID]) for prompt in asked]
    assert generate(policy, asked, max_new_tokens=10, stop_ids=[EOS_ID], batch_rows=2) == alone
    assert alone != generate(toy_model(), asked, max_new_tokens=10, stop_ids=[EOS_ID])
    assert policy.generation_config is configs[0]
    assert policy.get_base_model().generation_config is configs[1]


def test_a_family_whose_own_decoding_fails_is_decoded_from_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate_of_blt(**_: object) -> None:
        raise AttributeError("'BltConfig' object has no attribute 'num_hidden_layers'")

    model, asked = toy_model(), prompts(4)
    alone = [plain_generate(model, prompt, 5, [EOS_ID]) for prompt in asked]
    monkeypatch.setattr(model, "generate", generate_of_blt)
    assert generate(model, asked, max_new_tokens=5, stop_ids=[EOS_ID]) == alone


@pytest.mark.parametrize(("tokens", "rows"), [(100, 625), (100_000, 1), (10**9, 1)])
def test_rows_decoded_together_fit_into_a_share_of_the_gpus_memory(
    tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3)
    assert rows_at_once(model, tokens) == 64, "on the CPU"
    weight = SimpleNamespace(device=torch.device("cuda"), element_size=lambda: 2)
    row = 2 * 100 * 3 * (2 * 8) * 2 + 40 * VOCABULARY  # keys and values of 100 tokens, and logits
    card = SimpleNamespace(total_memory=8 * 625 * row)
    monkeypatch.setattr(model, "parameters", lambda: iter([weight]))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert rows_at_once(model, tokens) == rows
