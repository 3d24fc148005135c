"""Adapters through peft."""

import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig, MambaConfig, MambaForCausalLM

from dipo_lightning.errors import InputError
from dipo_lightning.models.lora import LoRA, adapts_projection, add_lora
from tests.helpers.toys import FAMILIES, toy_model

IDS = torch.arange(3, 15).view(2, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_nothing_and_switch_off_exactly(family):
    model = toy_model(family)
    before = model(IDS).logits
    wrapped = add_lora(model, LoRA(rank=2))
    assert torch.equal(wrapped(IDS).logits, before)
    trainable = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    assert not torch.allclose(wrapped(IDS).logits, before)
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(IDS).logits, before)


def test_targets_choose_the_modules():
    wrapped = add_lora(toy_model("llama"), LoRA(rank=3, alpha=6, targets=["q_proj", "mlp.up_proj"]))
    names = [name.split(".lora_A")[0] for name, _ in wrapped.named_parameters() if "lora_A" in name]
    adapted = {name.rpartition(".")[2] for name in names}
    assert adapted == {"q_proj", "up_proj"}
    assert wrapped.base_model.model.model.layers[0].self_attn.q_proj.scaling == {"default": 2.0}
    one = add_lora(toy_model("llama"), LoRA(targets="q_proj"))
    assert sum("lora_A" in name for name, _ in one.named_parameters()) == 2


def test_one_unknown_target_among_known_ones_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"'query' names no linear module.*down_proj.*q_proj"):
        add_lora(toy_model("llama"), LoRA(targets=["q_proj", "query"]))


def test_a_tied_output_projection_is_no_target():
    with pytest.raises(InputError, match="tied"):
        add_lora(toy_model("qwen2"), LoRA(targets=["lm_head"]))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": []}),
        *({"alpha": alpha} for alpha in (0, -1.0, float("nan"))),
    ],
)
def test_impossible_settings(wrong):
    with pytest.raises(InputError, match=f"(LoRA |lora.){next(iter(wrong))}"):
        LoRA(**wrong)


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [("all-linear", False), (["q_proj"], False), (["q_proj", "lm_head"], True), ("lm_head", True)],
)
def test_an_adapter_on_the_output_projection_is_noticed(targets: str | list[str], adapted: bool) -> None:
    """The loss is then not computed from hidden states and the bare projection, which would pass by the adapter."""
    model = toy_model("llama")
    lora = LoRA(targets=targets)
    assert adapts_projection(model, lora) == adapted
    projection = add_lora(model, lora).get_base_model().get_output_embeddings()
    assert hasattr(projection, "lora_A") == adapted


def test_all_linear_leaves_out_what_is_linear_by_class_only():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}
    config = Llama4TextConfig(vocab_size=320, pad_token_id=0, **sizes)
    wrapped = add_lora(Llama4ForCausalLM(config), LoRA(rank=2))
    wrapped(IDS, use_cache=False).logits.sum().backward()
    adapted = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in wrapped.named_parameters() if "lora_A" in name
    }
    assert {"q_proj", "o_proj", "up_proj"} <= adapted
    assert "router" not in adapted


def test_all_linear_of_a_state_space_model():
    model = MambaForCausalLM(MambaConfig(vocab_size=320, hidden_size=16, state_size=4, num_hidden_layers=1))
    wrapped = add_lora(model, LoRA(rank=2))
    wrapped(IDS, use_cache=False).logits.sum().backward()
    assert any("in_proj.lora_A" in name for name, _ in wrapped.named_parameters())
    with pytest.raises(InputError, match="do not fit this model.*out_proj"):
        add_lora(MambaForCausalLM(model.config), LoRA(targets=["out_proj"]))
