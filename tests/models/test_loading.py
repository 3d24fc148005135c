"""Loading gives exactly the saved model, quietly and without the network, or says why not."""

import json
import logging
import shutil
import socket
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from dipo_lightning.errors import InputError
from dipo_lightning.models.export import save_model
from dipo_lightning.models.loading import load_policy, load_tokenizer
from dipo_lightning.models.lora import LoRA, add_lora
from tests.helpers.toys import EOS, FAMILIES, save_toy, toy_config, toy_model, toy_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_weights_come_back_quietly(family, tmp_path, no_network, capfd):
    save_toy(tmp_path, family)
    capfd.readouterr()
    model, expected = load_policy(str(tmp_path)), toy_model(family).state_dict()
    assert {name: value.dtype for name, value in model.state_dict().items()} == dict.fromkeys(expected, torch.float32)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_dtype_and_attention_are_what_was_asked_for(llama):
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does under bf16-true
    try:
        assert load_policy(str(llama)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    model = load_policy(str(llama), dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"


def test_verbosity_and_progress_bars_are_left_as_they_were(llama):
    from transformers import logging as transformers_logging

    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_policy(str(llama))
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_folders_without_a_model(tmp_path):
    with pytest.raises(InputError, match="holds no config.json"):
        load_policy(str(tmp_path))
    toy_config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no weights"):
        load_policy(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"would run code")
    with pytest.raises(InputError, match="pickled weights only.*save_pretrained"):
        load_policy(str(tmp_path))


def test_other_kinds_of_model_are_refused_before_their_weights_are_read(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    for number, (family, kind) in enumerate([("bert", "BertForMaskedLM"), ("vit", None), ("llama", "LlamaModel")]):
        folder = tmp_path / str(number)
        config = AutoConfig.for_model(family, **sizes)
        config.architectures = [kind] if kind else None
        config.save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"not read")
        with pytest.raises(InputError, match=f"is a {kind or 'vit'}, not a causal language model"):
            load_policy(str(folder))


def test_a_classifier_saved_from_a_causal_family_is_refused(tmp_path):
    AutoModelForSequenceClassification.from_config(toy_config()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="LlamaForSequenceClassification, not a causal"):
        load_policy(str(tmp_path))


def test_missing_weights_are_never_replaced_by_random_ones(tmp_path):
    AutoModel.from_config(toy_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(InputError, match=r"does not hold all weights.*lm_head\.weight"):
        load_policy(str(tmp_path))


def test_weights_of_other_shapes_and_broken_files(llama, tmp_path):
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 400}))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((llama / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"such as lm_head\.weight \(\(320, 32\), not \(400, 32\)\)"):
        load_policy(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(InputError, match="complete copy"):
        load_policy(str(tmp_path))


def test_fewer_layers_than_the_weights_have_are_refused_and_other_surplus_weights_are_said(tmp_path):
    from safetensors.torch import load_file, save_file

    for family, layers, first in (("llama", "num_hidden_layers", "model.layers.1"), ("gpt2", "n_layer", "h.1")):
        folder = save_toy(tmp_path / family, family)
        config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        of_base = {name.removeprefix("transformer."): value for name, value in weights.items()}  # as GPT-2's own file
        masks = {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)}  # of old versions
        save_file(of_base | masks, folder / "model.safetensors", metadata={"format": "pt"})
        with warnings.catch_warnings(action="error", category=UserWarning):
            load_policy(str(folder))
        of_base |= masks | {"v_head.weight": torch.zeros(3)}
        save_file(of_base, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.warns(UserWarning, match=rf"{family} holds 1 weights that .* v_head\.weight; they are left out"):
            load_policy(str(folder))
        (folder / "config.json").write_text(json.dumps(config | {layers: 1}))
        with pytest.raises(InputError, match=rf"more layers than its config.* (9|11) weights .*such as {first}\."):
            load_policy(str(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "odd", "rope_theta": 1e4}}, "KeyError: 'odd'"),
        ({"hidden_act": "odd"}, "KeyError: 'odd'"),
        ({"dtype": "float33"}, "AttributeError: .*float33"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
    ],
)
def test_what_transformers_makes_of_a_broken_configuration_is_a_sentence(change, said, llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=f"could not be loaded. Check that the folder is a complete copy .*{said}"):
        load_policy(str(tmp_path))


def test_a_broken_tokenizer_is_a_sentence(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="The tokenizer .* could not be loaded. .*KeyError"):
        load_tokenizer(str(tmp_path))


def test_code_of_a_model_folder_does_not_run_unasked(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.M"}})
    )
    (tmp_path / "mine.py").write_text("raise AssertionError('ran')")
    with pytest.raises(InputError, match="trust_remote_code: true"):
        load_policy(str(tmp_path))


def test_an_unreachable_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_policy, load_tokenizer):
        with pytest.raises(InputError, match="no-such-org/no-such-model could not be loaded. Check the name"):
            load("no-such-org/no-such-model")


def test_only_errors_of_the_hub_ask_for_the_network(llama, tmp_path, monkeypatch):
    cached = tmp_path / "models--some--model"
    shutil.copytree(llama, cached / "snapshots" / "1")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    config = cached / "snapshots" / "1" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_parameters": {"rope_type": "odd"}}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="some/model could not be loaded. Check that this version .*KeyError: 'odd'"):
        load_policy("some/model")


@pytest.mark.parametrize("place", ["transformers.AutoModelForCausalLM", "peft.PeftModel"])
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_too_little_memory_is_not_taken_for_a_fault_of_the_folder(adapters, monkeypatch, place, kind):
    def allocate(*_, **__):
        raise kind("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")

    monkeypatch.setattr(f"{place}.from_pretrained", allocate)
    with pytest.raises(kind, match="can't allocate memory"):
        load_policy(str(adapters / "separate"))


def test_a_tokenizer_without_a_pad_token_pads_with_eos_and_says_so(tmp_path, caplog):
    tokenizer = toy_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token == EOS
    assert "no pad token" in caplog.text


def test_a_tokenizer_without_eos_or_none_at_all(tmp_path):
    with pytest.raises(InputError, match="tokenizer .* could not be loaded"):
        load_tokenizer(str(tmp_path))
    tokenizer = toy_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no EOS token"):
        load_tokenizer(str(tmp_path))


def test_an_encoder_is_refused(tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    for folder, is_decoder in ((tmp_path / "encoder", False), (tmp_path / "decoder", True)):
        config = BertConfig(vocab_size=64, initializer_range=0.2, is_decoder=is_decoder, **sizes)
        BertLMHeadModel(config).save_pretrained(folder)
    load_policy(str(tmp_path / "decoder"))
    with pytest.raises(
        InputError, match="encoder is not a causal language model: its tokens see the tokens after them"
    ):
        load_policy(str(tmp_path / "encoder"))


def test_what_a_family_refuses_in_its_first_forward_is_a_sentence(llama, monkeypatch):
    def unknown_language(*_):
        raise ValueError("Input language unknown.")  # as X-MOD does without a default language

    monkeypatch.setattr("dipo_lightning.models.loading.check_causal", unknown_language)
    with pytest.raises(InputError, match="could not be loaded.*Input language unknown"):
        load_policy(str(llama))


@pytest.fixture(scope="module")
def adapters(llama, tmp_path_factory):
    """A folder of adapters of `llama`, and the logits with them."""
    folder = tmp_path_factory.mktemp("adapters")
    policy = add_lora(load_policy(str(llama)), LoRA(rank=2))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(policy, folder / "separate", toy_tokenizer(), merge=False)
    save_model(policy, folder / "whole", toy_tokenizer())
    return folder


IDS = torch.arange(3, 12)[None]


def test_an_export_of_adapters_is_read_like_the_merged_one(adapters, llama, no_network):
    assert not (adapters / "separate" / "config.json").exists()
    read, merged, base = (load_policy(str(folder)) for folder in (adapters / "separate", adapters / "whole", llama))
    torch.testing.assert_close(read(IDS).logits, merged(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (read(IDS).logits - base(IDS).logits).abs().max() > 0.1
    assert load_tokenizer(str(adapters / "separate")).eos_token == EOS


def test_a_model_with_merged_adapters_is_trainable_like_a_whole_one(adapters, llama):
    read, whole = load_policy(str(adapters / "separate")), load_policy(str(llama))
    trained = {name: parameter.requires_grad for name, parameter in whole.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in read.named_parameters()} == trained
    assert all(trained.values())


@pytest.mark.filterwarnings("ignore:.*tie", "ignore:.*is_gradient_checkpointing")
def test_a_head_of_its_own_that_came_with_adapters_is_trainable(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = save_toy(tmp_path / "base", tie_word_embeddings=True)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, modules_to_save=["lm_head"])
    policy = get_peft_model(load_policy(str(base)), config)
    torch.nn.init.normal_(policy.get_output_embeddings().modules_to_save["default"].weight)
    policy.peft_config["default"].base_model_name_or_path = str(base)
    policy.save_pretrained(tmp_path / "adapters")
    read = load_policy(str(tmp_path / "adapters"))
    assert not torch.equal(read.lm_head.weight, read.get_input_embeddings().weight)
    assert all(parameter.requires_grad for parameter in read.parameters())


def test_adapters_that_cannot_be_merged_are_a_sentence(adapters, monkeypatch):
    def not_mergeable(*_):
        raise ValueError("Cannot merge these layers.")

    monkeypatch.setattr("peft.LoraModel.merge_and_unload", not_mergeable)
    with pytest.raises(InputError, match="could not be loaded.*Cannot merge these layers"):
        load_policy(str(adapters / "separate"))


def test_adapters_that_fit_a_part_of_the_model_only_are_refused(adapters, llama, tmp_path):
    from safetensors.torch import load_file, save_file

    def without_prefix(weights):
        return {name.removeprefix("base_model.model."): value for name, value in weights.items()}

    bases = {count: save_toy(tmp_path / str(count), num_hidden_layers=count) for count in (1, 2, 4)}
    for base, change, said in (
        (bases[4], dict, "28 weights are missing, such as .*layers.2"),
        (bases[1], dict, "14 weights have no place in the model, such as .*layers.1"),
        (bases[2], without_prefix, "28 weights are missing"),
    ):
        folder = tmp_path / f"adapters{base.name}"
        shutil.copytree(adapters / "separate", folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        names = sorted({name.rpartition(".")[2] for name in config["target_modules"]})  # as of more than a few layers
        config |= {"base_model_name_or_path": str(base), "target_modules": names}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
        with pytest.raises(InputError, match=f"The adapters in {folder} do not fit {base}: {said}.* Name the model"):
            load_policy(str(folder))


def test_adapters_beside_whole_weights_are_refused(adapters, tmp_path):
    shutil.copytree(adapters / "whole", tmp_path, dirs_exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapters / "separate" / name, tmp_path)
    for load in (load_policy, load_tokenizer):
        with pytest.raises(InputError, match=r"holds a whole model \(model.safetensors\) and LoRA adapters"):
            load(str(tmp_path))


def test_adapters_whose_model_is_gone_or_that_are_pickles(adapters, tmp_path):
    shutil.copytree(adapters / "separate", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for base, message in (
        (str(tmp_path), "does not name the model"),
        (str(tmp_path / "x/y"), "belong to another model. There is"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(InputError, match=message):
            load_policy(str(tmp_path))
    for content in ("[1]", '{"base_model_name_or_path": 5}'):
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(InputError, match="does not name the model"):
            load_policy(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled adapters are not read"):
        load_policy(str(tmp_path))


def test_a_mistyped_folder_gets_the_near_ones(tmp_path):
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    for wrong in ("models/smolm2", "model/smollm2"):
        with pytest.raises(InputError, match=r"no such file or folder.*Did you mean .*/models"):
            load_policy(str(tmp_path / wrong))


def test_a_mistyped_folder_that_looks_like_a_hub_name(tmp_path, monkeypatch):
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="There is no model .models/smolm2.*Did you mean models/smollm2?"):
        load_policy("models/smolm2")


def test_adapters_of_another_shape_or_kind_are_refused(adapters, llama, tmp_path):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    for name, config, model, said in (
        (
            "wide",
            LoraConfig(task_type="CAUSAL_LM", r=2),
            toy_model(hidden_size=64),
            "do not fit .*: size mismatch",
        ),
        ("prompts", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), toy_model(), "are PROMPT_TUNING"),
    ):
        made = get_peft_model(model, config)
        made.peft_config["default"].base_model_name_or_path = str(llama)
        made.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=f"The adapters in .*{name} {said}"):
            load_policy(str(tmp_path / name))
    (tmp_path / "wide" / "adapter_config.json").write_text("{broken")
    with pytest.raises(InputError, match=r"adapter_config\.json is broken JSON: Expecting"):
        load_policy(str(tmp_path / "wide"))


def test_adapters_may_name_their_model_from_where_they_are(adapters, llama, tmp_path, monkeypatch):
    shutil.copytree(llama, tmp_path / "base")
    shutil.copytree(adapters / "separate", tmp_path / "adapters")
    file = tmp_path / "adapters" / "adapter_config.json"
    (tmp_path / "elsewhere" / "here").mkdir(parents=True)
    (tmp_path / "elsewhere" / "base").mkdir()  # another "../base", seen from the working folder
    monkeypatch.chdir(tmp_path / "elsewhere" / "here")
    for base in ("base", "../base"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
        merged = load_policy(str(tmp_path / "adapters"))
        torch.testing.assert_close(
            merged(IDS).logits, load_policy(str(adapters / "whole"))(IDS).logits, rtol=1e-4, atol=1e-4
        )
