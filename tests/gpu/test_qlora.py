"""A base in 4 bits on one GPU: memory, packing against the CPU, unlearning by the command line, resuming, export."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dipo_lightning.cli.main import main
from dipo_lightning.models.checkpoint import read_checkpoint, restore
from dipo_lightning.models.export import merged_copy
from dipo_lightning.models.lora import BYTES, FourBitLinear, LoRA, add_lora, dense_copy, quantize_base
from tests.gpu.test_on_gpu import base, fit  # noqa: F401  # a fixture
from tests.helpers.toys import save_toy, toy_model

pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # bitsandbytes warns of slower kernels by GPU and version
]
DEVICE = torch.device("cuda")
SIZES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
TOKENS = torch.arange(3, 40)[None]


def packed_toy(device: torch.device) -> torch.nn.Module:
    return quantize_base(add_lora(toy_model("llama", **SIZES), LoRA(2)), device)


def logits(policy: torch.nn.Module) -> torch.Tensor:
    """As training and evaluation compute them under ``bf16-mixed``."""
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        return policy(TOKENS.to(DEVICE)).logits.float().cpu()


def test_packed_weights_take_the_planned_memory() -> None:
    torch.zeros(1, device=DEVICE)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    policy = packed_toy(DEVICE)
    packed = [module for module in policy.modules() if isinstance(module, FourBitLinear)]
    weights = sum(module.in_features * module.out_features for module in packed)
    assert torch.cuda.memory_allocated() - before == pytest.approx(BYTES * weights, rel=0.05)


def test_it_packs_as_the_cpu_does_and_computes_what_its_dense_copy_does() -> None:
    policy, cpu = packed_toy(DEVICE), packed_toy(torch.device("cpu"))
    kinds = [[one for one in each.modules() if isinstance(one, FourBitLinear)] for each in (policy, cpu)]
    for one, other in zip(*kinds, strict=True):
        far = ~torch.isclose(one.dense().weight, other.dense().weight, rtol=0.02, atol=0.02)
        assert far.float().mean() < 1e-4, "a weight half way between two levels may be rounded to either"
    policy.to(DEVICE)
    found, expected = logits(policy), dense_copy(policy)(TOKENS).logits.detach()
    assert (found - expected).abs().mean() < 0.05 * expected.std()
    assert torch.equal(found, logits(copy.deepcopy(policy)))
    with policy.disable_adapter():  # type: ignore[operator]
        assert torch.equal(found, logits(policy)), "new adapters add nothing: the policy is the reference"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for the kernels, which want whole blocks of 64 weights in a row."""
    return save_toy(tmp_path_factory.mktemp("wide") / "model", hidden_size=128, intermediate_size=256)


def options(model: Path) -> list[str]:
    return [
        f"--model.pretrained={model}",
        "--trainer.precision=bf16-mixed",
        "--model.lora.rank=2",
        "--model.lora.base=nf4",
    ]


@pytest.mark.parametrize(
    "more",
    [
        ["--model.reference=adapters_off"],
        ["--model.reference=hidden_states"],
        ["--model.activation_checkpointing=true"],
        ["--trainer.strategy=ddp"],
        ["--model=dipo_lightning.NPOModule", "--model.form=logits"],
    ],
    ids=" ".join,
)
def test_it_unlearns_and_is_exported(base: Path, model: Path, tmp_path: Path, more: list[str]) -> None:  # noqa: F811
    document = fit(base, tmp_path / "run", *more, *options(model))
    assert document["provenance"]["step"] == 2
    assert json.loads((tmp_path / "run/model/config.json").read_text())["model_type"] == "llama"
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    kept = sorted((tmp_path / "run/checkpoints").glob("*.ckpt"))[-1]
    policy, _ = restore(read_checkpoint(kept))
    expected = merged_copy(policy)(TOKENS).logits
    torch.testing.assert_close(exported(TOKENS).logits, expected, rtol=1e-3, atol=1e-3)


def test_a_cut_run_goes_on(base: Path, model: Path, tmp_path: Path) -> None:  # noqa: F811
    fit(base, tmp_path / "run", *options(model), "--trainer.max_steps=1")
    assert fit(base, tmp_path / "run", *options(model))["provenance"]["step"] == 2
    fit(base, tmp_path / "whole", *options(model))
    first, second = (
        AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}/model")(TOKENS).logits for name in ("run", "whole")
    )
    torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-2)


def test_fsdp2_is_refused(base: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    line = ["fit", f"--config={base}", f"--run={tmp_path / 'run'}", *options(model), "--trainer.strategy=fsdp2"]
    assert main(line) == 2
    assert "cannot be sharded" in capsys.readouterr().err
