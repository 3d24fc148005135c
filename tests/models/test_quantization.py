"""A base in 4 bits: refusals, the plan, and, where bitsandbytes is installed, packing, training, resuming and export.

bitsandbytes packs and unpacks on a CPU by the same format. Its GPU kernels are not tested here.
"""

import contextlib
import copy
import json
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning.cli.plan import BYTES, Run, count, make_plan, memory
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.methods.preference import NPOModule
from dipo_lightning.models import lora as quantization
from dipo_lightning.models.checkpoint import read_checkpoint, restore
from dipo_lightning.models.distributed import FSDP2Strategy
from dipo_lightning.models.export import merged_copy
from dipo_lightning.models.fingerprint import model_fingerprint
from dipo_lightning.models.lora import FourBitLinear, LoRA, add_lora, dense_copy, quantize_base
from tests.helpers.small_tofu import ToyData, trainer
from tests.helpers.toys import save_toy, toy_config, toy_model
from tests.helpers.user_run import FORGET, RETAIN

bitsandbytes = pytest.mark.skipif(
    not quantization.importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes"
)
CPU = torch.device("cpu")
GPU = SimpleNamespace(root_device=torch.device("cuda"))


def test_on_a_cpu_it_is_refused_before_the_model_is_loaded(tmp_path):
    module = NPOModule(str(tmp_path / "absent"), lora=LoRA(2, base="nf4"))
    with pytest.raises(InputError, match="needs an NVIDIA GPU"):
        trainer(tmp_path).fit(module, datamodule=ToyData())


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (FSDP2Strategy(), {}, "fsdp2 shards weights"),
        (GPU, {"precision": "32-true"}, "write trainer.precision: bf16-mixed"),
        (GPU, {"reference_name": "live"}, "model.reference is live"),
        (GPU, {"compile_blocks": True}, "cannot compile"),
        (GPU, {}, ""),
    ],
)
def test_where_it_cannot_work_a_sentence_says_so(strategy, options, said, monkeypatch):
    monkeypatch.setattr(quantization, "check_installed", lambda: None)
    run = SimpleNamespace(strategy=strategy, precision=options.get("precision", "bf16-mixed"))
    module = SimpleNamespace(**{"reference_name": "auto", "compile_blocks": False} | options)
    with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
        quantization.check_quantized(run, module)


def test_an_unknown_base_is_refused():
    with pytest.raises(InputError, match="it must be float32 or nf4"):
        LoRA(2, base="int8")


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'dipo-lightning\[qlora\]'"):
        quantize_base(add_lora(toy_model(), LoRA(2)), CPU)


def test_the_plan_counts_the_packed_layers():
    config = toy_config("llama", hidden_size=64, intermediate_size=128)
    run = Run(trainable="qlora", strategy="ddp", reference="adapters_off", lora_rank=4)
    counts = count(config, run)
    inside = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3)  # q, o; k, v of half the heads; gate, up, down
    assert counts.packed == inside
    outside = 2 * 320 * 64 + 5 * 64  # embedding, projection, norms
    assert memory(counts, run)["weights"] == BYTES * inside + 2 * outside + 4 * counts.trainable
    assert memory(counts, run)["gathered"] == 2 * 64 * 128


def test_8b_unlearns_on_24_gb_by_plan():
    options = {"memory_gb": 24.0, "activation_checkpointing": True, "batch_size": 4, "strategy": "ddp"}
    packed = make_plan("llama-3.1-8b", Run(trainable="qlora", reference="adapters_off", **options))
    assert packed.fits
    assert not make_plan("llama-3.1-8b", Run(trainable="lora", reference="adapters_off", **options)).fits
    with pytest.raises(InputError, match="strategy: ddp"):
        Run(trainable="qlora", reference="adapters_off")


@bitsandbytes
def test_only_the_blocks_are_packed_and_the_weights_are_close():
    model = toy_model(hidden_size=64, intermediate_size=128)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    dense = {name: module.weight.clone() for name, module in linear.items()}
    policy = quantize_base(add_lora(model, LoRA(2)), CPU)
    packed = {name: module for name, module in policy.named_modules() if isinstance(module, FourBitLinear)}
    assert len(packed) == 14
    for name, module in packed.items():
        weight = dense[name.removeprefix("base_model.model.").removesuffix(".base_layer")]
        error = (module.dense().weight - weight).abs().max() / weight.abs().max()
        assert 0 < error < 0.16  # half the widest gap between NF4's levels
        assert module.packed.numel() == weight.numel() // 2
    assert policy.get_output_embeddings().weight.dtype == torch.bfloat16
    assert not any("packed" in name for name in policy.state_dict())
    clone = copy.deepcopy(policy)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(clone(tokens).logits, policy(tokens).logits, rtol=0, atol=0)


@bitsandbytes
def test_the_unpacked_copy_computes_what_the_policy_does():
    policy = add_lora(toy_model(seed=1, hidden_size=64), LoRA(2))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    whole = copy.deepcopy(policy)
    quantize_base(policy, CPU)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            expected = policy(tokens).logits.float()
        rounding, packing = ((one(tokens).logits - expected).abs().mean() for one in (dense_copy(policy), whole))
        assert rounding < packing / 3  # bfloat16 alone, against 4 bits
        merged = merged_copy(policy)
        torch.testing.assert_close(merged(tokens).logits, dense_copy(policy)(tokens).logits, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, FourBitLinear) for module in merged.modules())


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """A function that unlearns with LoRA on a CPU, which a run would refuse for a packed base."""
    monkeypatch.setattr("dipo_lightning.methods.language_model.check_quantized", lambda *_: None)
    model = save_toy(tmp_path / "model", hidden_size=64)
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(folder, epochs, checkpoint=None, base="nf4", reference="adapters_off"):
        data = UnlearningDataModule(
            str(model), str(tmp_path / "forget.jsonl"), str(tmp_path / "retain.jsonl"), prompt="plain", batch_size=1
        )
        pl.seed_everything(0)
        cache = str(tmp_path / "cache")
        module = NPOModule(str(model), lora=LoRA(2, base=base), reference=reference, reference_cache=cache)
        made = trainer(tmp_path / folder, precision="bf16-mixed", max_epochs=epochs)
        made.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        made.save_checkpoint(tmp_path / f"{folder}.ckpt")
        return module

    return run


@bitsandbytes
def test_a_run_trains_the_adapters_resumes_and_is_exported(fit, tmp_path):
    whole, half = fit("whole", 2), fit("half", 1)
    resumed = fit("resumed", 2, tmp_path / "half.ckpt")
    first, second, third = (model_fingerprint(one.policy, trainable_only=True) for one in (half, whole, resumed))
    assert first != second
    assert second == third
    policy, _ = restore(read_checkpoint(tmp_path / "whole.ckpt"))
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            merged_copy(policy)(tokens).logits, merged_copy(whole.policy.eval())(tokens).logits, rtol=0, atol=0
        )


@bitsandbytes
def test_a_cache_of_the_unpacked_base_is_another_one(fit, tmp_path):
    fit("unpacked", 1, base="float32", reference="hidden_states")
    [made] = (tmp_path / "cache").rglob("values.bin")
    fit("packed", 1, reference="hidden_states")
    assert len({made, *(tmp_path / "cache").rglob("values.bin")}) == 2
