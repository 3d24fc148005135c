"""Loading gives exactly the saved model, quietly and without the network, or says why not."""

import json
import logging
import socket

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from dipo_lightning.errors import InputError
from dipo_lightning.models.loading import check_tokenizer, load_policy, load_tokenizer
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
    check_tokenizer(load_tokenizer(str(tmp_path)), model.config)
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


def test_a_tokenizer_larger_than_the_embedding(llama):
    check_tokenizer(toy_tokenizer(), toy_config(vocab_size=320))
    with pytest.raises(InputError, match="ids up to 319, but the model .* has 319 embeddings"):
        check_tokenizer(toy_tokenizer(), toy_config(vocab_size=319))
