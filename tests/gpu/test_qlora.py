"""A base in 4 bits on one GPU: it trains through the command line, its memory is the plan's, and it is exported."""

import json
from pathlib import Path

import pytest
import torch

from dipo_lightning.models.lora import BYTES, FourBitLinear, LoRA, add_lora, dense_copy, quantize_base
from tests.gpu.test_on_gpu import base, fit  # noqa: F401  # a fixture
from tests.helpers.toys import toy_model

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_packed_weights_take_the_planned_memory_and_agree_with_the_cpus() -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    policy = quantize_base(add_lora(toy_model("llama", **sizes), LoRA(2)), torch.device("cuda"))
    packed = [module for module in policy.modules() if isinstance(module, FourBitLinear)]
    weights = sum(module.in_features * module.out_features for module in packed)
    assert torch.cuda.memory_allocated() - before == pytest.approx(BYTES * weights, rel=0.05)
    cpu = quantize_base(add_lora(toy_model("llama", **sizes), LoRA(2)), torch.device("cpu"))
    others = [module for module in cpu.modules() if isinstance(module, FourBitLinear)]
    for one, other in zip(packed, others, strict=True):
        far = ~torch.isclose(one.dense().weight.cpu(), other.dense().weight, rtol=0.02, atol=0.02)
        assert far.float().mean() < 1e-4, "a weight half way between two levels may be rounded to either"
    tokens = torch.arange(3, 40)[None]
    policy.cuda()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        found = policy(tokens.cuda()).logits.float().cpu()
    with torch.no_grad():
        expected = dense_copy(policy)(tokens).logits
    assert (found - expected).abs().mean() < 0.03 * expected.std()


def test_it_unlearns_with_the_adapters_off_as_reference_and_is_exported(base: Path, tmp_path: Path) -> None:  # noqa: F811
    options = ["--trainer.precision=bf16-mixed", "--model.lora.rank=2", "--model.lora.base=nf4"]
    document = fit(base, tmp_path / "run", *options, "--model.reference=adapters_off")
    assert document["provenance"]["step"] == 2
    assert json.loads((tmp_path / "run/model/config.json").read_text())["model_type"] == "llama"
    assert (tmp_path / "run/model/model.safetensors").stat().st_size > 0
