"""The linear head is recognised by what it computes."""

import pytest
import torch

from dipo_lightning.models.head import (
    decoder,
    known_head,
    output_head,
    output_projection,
)
from dipo_lightning.models.lora import LoRA, add_lora
from tests.helpers.toys import FAMILIES, LINEAR_HEADS, toy_model


def linear(model):
    head = known_head(model)
    return head if head is not None and head.linear else None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_with_a_linear_head_are_told_apart(family):
    head = linear(model := toy_model(family))
    assert (head is not None) == (family in LINEAR_HEADS)
    assert head is None or (head.linear and head.weight is output_projection(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_identity_holds_exactly_where_it_is_claimed(family):
    model, ids = toy_model(family), torch.arange(3, 15).view(2, 6)
    logits = model(ids).logits
    product = decoder(model)(ids).last_hidden_state @ output_projection(model).T
    assert torch.allclose(logits, product, atol=1e-5) == (family in LINEAR_HEADS)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(family, dtype):
    assert linear(toy_model(family).to(dtype)) is not None


def test_a_soft_cap_shows_even_where_the_logits_are_tiny():
    model = toy_model("gemma2", initializer_range=1e-4, final_logit_softcapping=30.0)
    ids = torch.arange(3, 9).view(1, 6)
    product = decoder(model)(ids).last_hidden_state @ output_projection(model).T
    assert torch.allclose(model(ids).logits, product, atol=1e-5)  # an ordinary forward can't tell
    assert linear(model) is None
    assert linear(toy_model("gemma2", final_logit_softcapping=None)) is not None


def test_a_bias_counts_even_where_it_is_zero_now():
    model = toy_model("phi")
    torch.nn.init.zeros_(model.lm_head.bias)
    assert linear(model) is None


@pytest.mark.parametrize(("family", "field"), [("granite", "logits_scaling"), ("cohere", "logit_scale")])
def test_scaled_logits(family, field):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    common = sizes | {"intermediate_size": 32, "vocab_size": 64, "pad_token_id": 0}
    ids = torch.arange(3, 15).view(2, 6)
    for scale in (0.5, 1.0):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **{field: scale})).eval()
        assert (linear(model) is not None) == (scale == 1.0)
        assert known_head(model)
        assert torch.equal(output_head(model)(decoder(model)(ids).last_hidden_state), model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_of_every_family_is_known(family):
    model, ids = toy_model(family), torch.arange(3, 15).view(2, 6)
    assert known_head(model)
    head = output_head(model)
    assert head.linear == (family in LINEAR_HEADS)
    assert torch.equal(head(decoder(model)(ids).last_hidden_state), model(ids).logits)


def test_a_head_that_does_something_else_is_not_known():
    model = toy_model("gemma2")
    model.config.final_logit_softcapping = None  # read by the model itself too
    assert known_head(model)
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: output.clamp(max=3.0))
    assert not known_head(model)
    assert not known_head(add_lora(toy_model("llama"), LoRA(targets=["q_proj", "lm_head"])))


def test_the_probe_leaves_no_trace():
    model = toy_model("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    linear(model)
    assert model.training
    assert not decoder(model)._forward_hooks
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adapters_on_the_blocks_keep_the_head_linear_and_one_on_the_head_does_not():
    model = toy_model("llama")
    wrapped = add_lora(model, LoRA(targets=["q_proj"]))
    assert linear(wrapped) is not None
    assert decoder(wrapped) is model.model
    assert output_projection(wrapped) is model.lm_head.weight
    on_the_head = add_lora(toy_model("llama"), LoRA(targets=["q_proj", "lm_head"]))
    assert linear(on_the_head) is None
