"""The fingerprint tells weights apart, and nothing else."""

import torch
from torch import nn

from dipo_lightning.models import fingerprint
from dipo_lightning.models.fingerprint import model_fingerprint
from tests.helpers.toys import toy_model


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
