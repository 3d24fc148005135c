"""The plan's numbers against bytes counted on toys that really train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from dipo_lightning.cli.plan import Run, cheapest_fit, configuration, count, make_plan, memory, plan, saved_bytes
from dipo_lightning.errors import InputError
from dipo_lightning.models.head import decoder
from dipo_lightning.models.loading import load_policy
from dipo_lightning.models.lora import LoRA, add_lora
from tests.helpers.toys import FAMILIES, save_toy

SMALL: dict[str, Any] = {"batch_size": 1, "length": 24, "answer_length": 4, "compute_dtype": "float32"}


def trained(model: torch.nn.Module) -> torch.optim.Optimizer:
    """One step of AdamW, so that gradients and moments exist."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    ids = torch.arange(3, 27).view(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return optimizer


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_weights_gradients_and_optimizer_are_the_bytes_of_a_real_model(
    tmp_path: Path, family: str, trainable: Any
) -> None:
    folder = str(save_toy(tmp_path, family))
    run = Run(trainable=trainable, lora_rank=4, reference="none", **SMALL)
    planned = memory(count(configuration(folder), run), run)
    model: Any = load_policy(folder)
    if trainable == "lora":
        model = add_lora(model, LoRA(rank=4))
    optimizer = trained(model)
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    assert planned["weights"] == size(model.parameters())
    assert planned["gradients"] == size(p.grad for p in model.parameters() if p.grad is not None)
    assert planned["optimizer"] == size(moments)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("layers", [1, 2])
def test_activations_are_what_autograd_saves(tmp_path: Path, family: str, layers: int) -> None:
    field = "n_layer" if family == "gpt2" else "num_hidden_layers"
    folder = str(save_toy(tmp_path, family, **{field: layers}))
    model = load_policy(folder).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    padded = torch.ones(2, 24, dtype=torch.long)
    padded[1, 20:] = 0  # as in training; without padding the mask is left out, and attention keeps less
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(2, 24, dtype=torch.long)
        output = decoder(model)(input_ids=ids, attention_mask=padded, use_cache=False)
    real = sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in weights)
    assert output.last_hidden_state.requires_grad
    rest, blocks = saved_bytes(configuration(folder), Run(**SMALL))
    assert len(blocks) == layers
    assert rest + sum(blocks) == pytest.approx(real, rel=0.02)


def test_activations_in_the_shape_of_a_weight_are_counted() -> None:
    """16 rows of 512 tokens in 2048 numbers, (8192, 2048), are what a weight of Llama-3.2-1B is."""
    shorter, here, longer = (saved_bytes(configuration("llama-3.2-1b"), Run(length=n))[1][0] for n in (511, 512, 513))
    assert here == pytest.approx((shorter + longer) / 2, rel=1e-3)


def test_splitting_divides_what_is_split_and_nothing_else() -> None:
    one, eight = (make_plan("llama-3.2-1b", Run(gpus=gpus)).parts for gpus in (1, 8))
    for name in ("weights", "gradients", "optimizer"):
        assert one[name] == 8 * eight[name]
    for name in ("gathered", "activations", "loss"):
        assert one[name] == eight[name]
    assert make_plan("llama-3.2-1b", Run(gpus=8, strategy="ddp")).parts["weights"] == one["weights"]


def test_named_shapes_have_the_published_numbers_of_parameters() -> None:
    published = {"llama-3.2-1b": 1.236e9, "llama-3.1-8b": 8.030e9, "llama-2-13b": 13.016e9, "llama-3.1-70b": 70.554e9}
    for name, parameters in published.items():
        assert count(configuration(name), Run()).total == pytest.approx(parameters, rel=1e-3)


def test_it_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("llama-3.2-1b", activation_checkpointing=True).fits
    assert "\nfits: 72 of 80 GB" in capsys.readouterr().out
    assert plan("llama-3.2-1b", activation_checkpointing=True, memory_gb=40.4).fits
    said = capsys.readouterr().out
    assert "GPU(s) of 40.4 GB" in said
    assert "\nfits: 36.4 of 40.4 GB" in said
    assert not plan("llama-3.1-8b").fits
    assert "does NOT fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gpus": 0}, "gpus is 0"),
        ({"memory_gb": -1}, "memory_gb"),
        ({"answer_length": 600}, "answer_length"),
        ({"length": 10**11}, "length is 100000000000; it can be 1000000 tokens at most"),
        ({"reference": "adapters_off"}, "trainable: lora"),
        ({"trainable": "qlora", "reference": "none"}, "needs strategy: ddp .on one GPU too. and compute_dtype"),
    ],
)
def test_impossible_runs_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Run(**options)


QLORA: dict[str, Any] = {"trainable": "qlora", "reference": "adapters_off", "strategy": "ddp"}


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("gemma2", {"reference": "hidden_states"}, "logits of a gemma2 model are more than the product"),
        ("phi", {"reference": "hidden_states"}, "logits of a phi model are more than the product"),
        ("gpt2", QLORA, "blocks of this gpt2 model have none"),
    ],
)
def test_what_a_model_cannot_do_is_refused_and_never_advised(
    tmp_path: Path, family: str, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_toy(tmp_path, family))
    with pytest.raises(InputError, match=said):
        make_plan(folder, Run(**options))
    llama = str(save_toy(tmp_path / "llama"))
    make_plan(llama, Run(**options))
    planned: list[Run] = []

    def kept(pretrained: str, run: Run) -> Any:
        made = make_plan(pretrained, run)
        planned.append(run)
        return made

    monkeypatch.setattr("dipo_lightning.cli.plan.make_plan", kept)
    assert cheapest_fit(folder, Run(length=24, answer_length=4, memory_gb=1e-6)) is None, "every change was tried"
    assert planned
    assert not any(options.items() <= vars(run).items() for run in planned)


@pytest.mark.parametrize("family", ["t5", "vit", "bert"])
def test_other_kinds_of_model_are_refused(family: str, tmp_path: Path) -> None:
    made = AutoConfig.for_model(family)
    made.architectures = ["BertForMaskedLM"] if family == "bert" else None
    made.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a (t5|vit|BertForMaskedLM), not a causal language model"):
        plan(str(tmp_path))


def test_a_family_that_cannot_be_traced_gets_a_sentence() -> None:
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2, "kv_channels": 8}
    experts = {"intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}
    with pytest.raises(InputError, match="activations of a jetmoe model cannot be computed in advance.*Measure a step"):
        saved_bytes(AutoConfig.for_model("jetmoe", **sizes, **experts), Run(**SMALL))
