"""A base in 4 bits: refusals, the plan, and, where bitsandbytes is installed, packing, training, resuming and export.

bitsandbytes packs and unpacks on a CPU by the same format. Its GPU kernels are not tested here.
"""

import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning.cli.plan import BYTES, Run, count, make_plan, memory
from dipo_lightning.errors import InputError
from dipo_lightning.methods.preference import NPOModule
from dipo_lightning.models import quantization
from dipo_lightning.models.checkpoint import read_checkpoint, restore
from dipo_lightning.models.export import merged_copy
from dipo_lightning.models.fingerprint import model_fingerprint
from dipo_lightning.models.lora import LoRA, add_lora
from dipo_lightning.models.quantization import FourBitLinear, dense_copy, quantize_base
from tests.helpers.small_tofu import ToyData, trainer
from tests.helpers.toys import save_toy, toy_config, toy_model
from tests.helpers.user_run import FORGET, RETAIN

bitsandbytes = pytest.mark.skipif(
    not quantization.importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes"
)
CPU = torch.device("cpu")


@pytest.mark.parametrize("options", [{}, {"strategy": "fsdp2", "devices": 1}])
def test_where_it_cannot_work_a_sentence_says_so(options, tmp_path):
    module = NPOModule(str(save_toy(tmp_path / "model")), lora=LoRA(2, base="nf4"))
    with pytest.raises(InputError, match=r"fsdp2 shards weights" if options else "needs an NVIDIA GPU"):
        trainer(tmp_path, **options).fit(module, datamodule=ToyData())


def test_an_unknown_base_is_refused():
    with pytest.raises(InputError, match="it is float32 or nf4"):
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


@bitsandbytes
def test_a_run_trains_the_adapters_resumes_and_is_exported(tmp_path, monkeypatch):
    import json

    from dipo_lightning.data.unlearning import UnlearningDataModule

    monkeypatch.setattr("dipo_lightning.methods.language_model.check_quantized", lambda *_: None)  # a CPU, for once
    model = save_toy(tmp_path / "model", hidden_size=64)
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def fit(folder, epochs, checkpoint=None):
        data = UnlearningDataModule(
            str(model), str(tmp_path / "forget.jsonl"), str(tmp_path / "retain.jsonl"), prompt="plain", batch_size=1
        )
        pl.seed_everything(0)
        lora = LoRA(2, base="nf4")
        module = NPOModule(str(model), lora=lora, reference="adapters_off", reference_cache=str(tmp_path / "cache"))
        options = {"precision": "bf16-mixed", "max_epochs": epochs}
        run = trainer(tmp_path / folder, **options)
        run.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        run.save_checkpoint(tmp_path / f"{folder}.ckpt")
        return module, run

    whole, _ = fit("whole", 2)
    half, _ = fit("half", 1)
    resumed, _ = fit("resumed", 2, tmp_path / "half.ckpt")
    first, second, third = (model_fingerprint(one.policy, trainable_only=True) for one in (half, whole, resumed))
    assert first != second
    assert second == third
    policy, _ = restore(read_checkpoint(Path(tmp_path / "whole.ckpt")))
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            merged_copy(policy)(tokens).logits, merged_copy(whole.policy.eval())(tokens).logits, rtol=0, atol=0
        )
