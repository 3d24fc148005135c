"""The fingerprint tells apart models that compute different things, and nothing else."""

import pytest
import torch
from torch import nn

from dipo_lightning.models import fingerprint
from dipo_lightning.models.fingerprint import model_fingerprint
from dipo_lightning.models.loading import load_policy
from tests.helpers.toys import save_toy, toy_model


def test_it_is_stable_and_sees_seed_family_and_dtype():
    first = model_fingerprint(toy_model("llama"))
    assert first == model_fingerprint(toy_model("llama"))
    others = [toy_model("llama", seed=1), toy_model("mistral", seed=2), toy_model("llama").bfloat16()]
    assert len({first, *map(model_fingerprint, others)}) == 4


def test_the_last_bit_of_one_weight_counts():
    model = toy_model("llama")
    before = model_fingerprint(model)
    weight = model.lm_head.weight.data
    weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(torch.inf))
    assert model_fingerprint(model) != before


def test_names_and_shapes_count():
    values = torch.arange(6.0)
    flat, wide = nn.ParameterDict({"a": values}), nn.ParameterDict({"a": values.view(2, 3)})
    renamed = nn.ParameterDict({"b": values})
    assert len({model_fingerprint(module) for module in (flat, wide, renamed)}) == 3


def test_chunks_scalars_and_strides_do_not_matter(monkeypatch):
    module = nn.ParameterDict({"a": torch.randn(7, 5).T, "b": torch.tensor(2.0)})
    whole = model_fingerprint(module)
    monkeypatch.setattr(fingerprint, "_CHUNK", 3)
    assert model_fingerprint(module) == whole
    assert model_fingerprint(nn.ParameterDict({"a": module["a"].contiguous(), "b": module["b"]})) == whole


@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        ("llama", {"rms_norm_eps": 1e-3}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"output_multiplier": 2.0}),
        ("mistral", {"sliding_window": 64}),
        ("gemma2", {"final_logit_softcapping": 7.0}),
    ],
)
def test_the_configuration_counts_though_the_weights_are_the_same(family, field):
    first, second = toy_model(family), toy_model(family, **field)
    for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert model_fingerprint(first) != model_fingerprint(second)
    assert model_fingerprint(first, trainable_only=True) == model_fingerprint(second, trainable_only=True)


def test_buffers_count():
    model = toy_model()
    before = model_fingerprint(model)
    model.model.rotary_emb.inv_freq[1] *= 1.01
    assert model_fingerprint(model) != before
    batch_norm = nn.BatchNorm1d(2)
    before = model_fingerprint(batch_norm)
    batch_norm.running_mean += 1
    assert model_fingerprint(batch_norm) != before


def test_the_folder_versions_and_initial_values_do_not_count(tmp_path):
    model = toy_model()
    fingerprint_before = model_fingerprint(model)
    loaded = load_policy(str(save_toy(tmp_path / "elsewhere")))
    assert model_fingerprint(loaded) == fingerprint_before
    model.config.update({"use_cache": False, "pad_token_id": 7, "initializer_range": 0.5, "architectures": ["Other"]})
    assert model_fingerprint(model) == fingerprint_before
