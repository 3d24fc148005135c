"""Models say themselves how rows can be laid out, how long they may be, and where their blocks are."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dipo_lightning.cli.plan import Run, count, saved_bytes
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import generate
from dipo_lightning.evaluation.scoring import score
from dipo_lightning.models.answers import collate, compute_answers
from dipo_lightning.models.distributed import checkpoint_activations, transformer_blocks
from dipo_lightning.models.inspection import (
    check_causal,
    check_rows,
    check_training,
    leaves_rows_alone,
    position_limit,
    same_logits,
)
from tests.evaluation.test_generation import plain_generate
from tests.evaluation.test_scoring import plain_score
from tests.helpers.families import SIZES, family_model
from tests.helpers.toys import VOCABULARY, toy_model, toy_tokenizer


def examples(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Two prompts, each with answers that make rows shorter and longer than a window of 24 tokens."""
    draw = random.Random(seed)
    made = []
    for length in (10, 17):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(length)]
        for answer in ([draw.randrange(3, VOCABULARY) for _ in range(size)] for size in (3, 6, 30)):
            made.append((prompt + answer, [-100] * length + answer))
    return made


@pytest.mark.parametrize("family", SIZES)
def test_scores_are_those_of_a_row_alone(family: str) -> None:
    model = family_model(family)
    for example, got in zip(examples(), score(model, examples()), strict=True):
        torch.testing.assert_close(got.logprobs.double(), plain_score(model, example)[0], rtol=1e-4, atol=1e-4)


def test_a_family_that_ignores_the_positions_asked_for_is_trained_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forward = toy_model(), type(toy_model()).forward
    rows = [{"input_ids": ids, "labels": labels, "index": 0} for ids, labels in examples()[:3]]

    def nll() -> torch.Tensor:
        return compute_answers(model, {"forget": collate(rows)}, lambda parts: {"nll": parts["forget"].nll})["nll"]

    expected = nll()
    monkeypatch.setattr(model, "forward", lambda logits_to_keep=None, **inputs: forward(model, **inputs))  # as xLSTM's
    torch.testing.assert_close(nll(), expected)


@pytest.mark.parametrize("family", SIZES)
def test_generations_are_those_of_a_prompt_alone(family: str) -> None:
    model, draw = family_model(family), random.Random(1)
    prompts = [[draw.randrange(3, VOCABULARY) for _ in range(length)] for length in (3, 20, 9, 9, 27)]
    alone = [plain_generate(model, prompt, 5, [2]) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=5, stop_ids=[2]) == alone


@pytest.mark.parametrize("family", ["biogpt", "ctrl", "openai-gpt", "mamba", "bert"])
def test_blocks_are_found_checkpointed_and_planned_for(family: str) -> None:
    model = family_model(family).train()
    blocks = transformer_blocks(model)
    assert len(blocks) == 2
    batch = collate([{"input_ids": ids, "labels": labels, "index": 0} for ids, labels in examples()[:2]], 0)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        terms = compute_answers(model, {"forget": batch}, lambda parts: {"loss": parts["forget"].nll.sum()})
        terms["loss"].backward()
        return next(blocks[0].parameters()).grad.clone()

    before, calls = gradient(), []
    next(module for module in blocks[0].modules() if not list(module.children())).register_forward_hook(
        lambda *_: calls.append(1)
    )
    gradient()
    once = len(calls)
    checkpoint_activations(model)
    torch.testing.assert_close(gradient(), before)
    assert len(calls) == 3 * once, "the block is computed again in the backward pass"
    run = Run(batch_size=2, length=16, answer_length=4)
    assert count(model.config, run).layers == 2
    rest, kept = saved_bytes(model.config, run)
    assert rest > 0
    assert len(kept) == 2
    assert min(kept) > 0


@pytest.mark.parametrize(
    ("family", "fields", "limit"),
    [
        ("bart", {"max_position_embeddings": 40}, 40),
        ("bert", {"max_position_embeddings": 40}, 40),
        ("biogpt", {"max_position_embeddings": 40}, 40),
        ("bloom", {}, None),
        ("codegen", {"n_positions": 40}, 40),
        ("ctrl", {"n_positions": 40}, 40),
        ("mamba", {}, None),
        ("openai-gpt", {"n_positions": 40}, 40),
        ("phi3", {"max_position_embeddings": 40, "original_max_position_embeddings": 40}, None),
        ("roberta", {"max_position_embeddings": 42, "pad_token_id": 1}, 40),
    ],
)
def test_the_end_of_a_table_of_positions(family: str, fields: dict, limit: int | None) -> None:
    model = family_model(family, **fields)
    assert position_limit(model) == limit
    ids = torch.arange(3, 44)[None]
    model(ids[:, :40])
    if limit is None:
        model(ids)
    else:
        with pytest.raises((IndexError, RuntimeError)):
            model(ids)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_rows_beyond_the_table_are_cut_in_scoring_and_stop_in_generation(family: str) -> None:
    field = "n_positions" if family == "gpt2" else "max_position_embeddings"
    model, (long, labels) = toy_model(family, **{field: 32}), examples()[2]
    short = examples()[0]
    with pytest.warns(UserWarning, match=r"1 of 2 evaluated texts are longer than the model's 32 positions \(up to 40"):
        cut, whole = score(model, [(long, labels), short])
    torch.testing.assert_close(
        cut.logprobs.double(), plain_score(model, (long[:32], labels[:32]))[0], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(whole.logprobs.double(), plain_score(model, short)[0], rtol=1e-5, atol=1e-5)
    prompts = [long[:29], short[0][:4], long]
    with pytest.warns(UserWarning, match="1 of 3 prompts fill the model's 32 positions: their answers are empty"):
        said = generate(model, prompts, max_new_tokens=10, stop_ids=[])
    assert said == [plain_generate(model, prompts[0], 3, []), plain_generate(model, prompts[1], 10, []), []]


def test_a_rotary_model_beyond_its_context_is_warned_about() -> None:
    model, example = toy_model(max_position_embeddings=32), examples()[2]
    with pytest.warns(UserWarning, match="40 tokens, more than the 32 that the model was made for"):
        score(model, [example])


def test_dynamic_frequencies_end_like_a_table() -> None:
    """Beyond their length they depend in transformers on the longest row that the model has seen."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model, example = toy_model(max_position_embeddings=32, rope_parameters=rope), examples()[2]
    assert position_limit(model) == 32
    assert position_limit(toy_model(max_position_embeddings=32)) is None
    with pytest.raises(InputError, match="retain row 8 has 33 tokens.*32 only: set data.max_length to 32"):
        check_rows(Data([[5, 6], [7] * 33]), model)
    with pytest.warns(UserWarning, match="cut at the end"):
        [cut] = score(model, [example])
    torch.testing.assert_close(
        cut.logprobs.double(), plain_score(model, (example[0][:32], example[1][:32]))[0], rtol=1e-5, atol=1e-5
    )
    assert len(generate(model, [example[0][:29]], max_new_tokens=10, stop_ids=[])[0]) == 3


def test_encoders_are_told_from_decoders() -> None:
    for family in SIZES:
        check_causal(family_model(family), family)
    for family in ("bert", "roberta"):
        with pytest.raises(InputError, match=f"{family} is not a causal language model"):
            check_causal(family_model(family, is_decoder=False), family)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_said(value: float) -> None:
    model = toy_model()
    torch.nn.init.constant_(model.get_output_embeddings().weight, value)
    with pytest.raises(InputError, match=r"broken gives logits that are not finite.* torch\.float32"):
        check_causal(model, "broken")


class Data:
    """A data module's rows."""

    def __init__(self, rows: list[list[int]], extra: tuple[str, ...] = ()) -> None:
        self.tokenizer = toy_tokenizer()
        self.tokenizer.add_tokens(list(extra))
        self.longest = max(map(len, rows))
        self._training = self
        self.retain = [{"input_ids": ids, "index": 7 + number} for number, ids in enumerate(rows)]


def test_rows_are_compared_with_the_model_before_training() -> None:
    check_rows(Data([[5, 6], [7] * 30], extra=("[PAD]",)), toy_model("gpt2", n_positions=32))
    with pytest.raises(InputError, match=r"retain row 8 holds '\[PAD\]', id 320, but the model has only 320"):
        check_rows(Data([[5, 6], [7, 320]], extra=("[PAD]",)), toy_model())
    with pytest.raises(InputError, match="retain row 8 has 33 tokens.*32 only: set data.max_length to 32"):
        check_rows(Data([[5, 6], [7] * 33]), toy_model("gpt2", n_positions=32))
    with pytest.warns(UserWarning, match="33 tokens, more than the 32"):
        check_rows(Data([[7] * 33]), toy_model(max_position_embeddings=32))
    for call in (lambda: score(toy_model(), [([5, 320], [-100, 320])]),
                 lambda: generate(toy_model(), [[320]], max_new_tokens=1, stop_ids=[])):  # fmt: skip
        with pytest.raises(InputError, match="Text 0 of 1 holds the token id 320"):
            call()


def test_a_family_that_padding_disturbs_is_said_before_training() -> None:
    state = torch.get_rng_state()
    for family in ("bert", "gpt_oss", "mamba", "rwkv"):
        check_training(family_model(family))
    with pytest.warns(UserWarning, match="Padding behind a row changes what this model computes"):
        check_training(family_model("prophetnet"))
    check_training(family_model("deepseek_v32"), longest=16)
    with pytest.warns(UserWarning, match="Padding behind a row changes what this model computes"):
        check_training(family_model("deepseek_v32"), longest=17)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_family_that_cannot_be_trained_on_any_length_is_refused() -> None:
    sizes = {"hidden_size": 32, "attention_head_size": 8, "num_attention_heads": 4, "feed_forward_size": 64}
    axes = {"axial_pos_shape": (4, 8), "axial_pos_embds_dim": (16, 16), "attn_layers": ["local"], "num_buckets": 4}
    config = AutoConfig.for_model("reformer", vocab_size=VOCABULARY, is_decoder=True, **sizes, **axes)
    with pytest.raises(InputError, match="This reformer model fails on a padded batch of two rows.*sequence length"):
        check_training(AutoModelForCausalLM.from_config(config).eval())


def test_products_in_tf32_are_rounding_too():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    rounded = logits * (1 + 0.01 * torch.randn(4, 50, generator=torch.Generator().manual_seed(1)))
    assert not same_logits(rounded, logits)
    assert same_logits(logits + 1e-5, logits)
    torch.set_float32_matmul_precision("high")
    try:
        assert same_logits(rounded, logits)
        assert not same_logits(logits.flip(-1), logits)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_layout_is_tried_again_only_between_the_lengths_that_passed_and_failed():
    model, tried = toy_model(), []

    def held(length: int, result: bool) -> bool:
        return leaves_rows_alone(model, "layout", length, lambda: tried.append(length) or result)

    assert [held(5, True), held(4, False), held(9, False), held(12, True), held(7, True), held(6, False)] == [
        True, True, False, False, True, True,
    ]  # fmt: skip
    assert tried == [5, 9, 7]
