"""On one GPU: every method and precision trains, evaluations agree with the CPU's, commands find the device."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dipo_lightning.cli.main import main
from tests.helpers.small_tofu import write_tofu
from tests.helpers.toys import save_toy, toy_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "methods"
METHODS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base configuration for a GPU, with an evaluation before and after two steps."""
    folder = tmp_path_factory.mktemp("base")
    save_toy(folder / "model")
    config: dict[str, Any] = {
        "seed_everything": 0,
        "trainer": {"accelerator": "gpu", "devices": 1, "max_steps": 2, "enable_progress_bar": False},
        "model": {
            "class_path": "dipo_lightning.DiPOModule",
            "init_args": {"pretrained": str(folder / "model"), "reference_cache": str(folder / "cache")},
        },
        "data": {
            "class_path": "dipo_lightning.TOFUDataModule",
            "init_args": {"data": str(write_tofu(folder / "data")), "prompt": "plain", "batch_size": 2},
        },
    }  # fmt: skip
    config["trainer"]["callbacks"] = [
        {
            "class_path": "dipo_lightning.TOFUEvaluation",
            "init_args": {"max_rows": 4, "measuring": {"max_new_tokens": 8}},
        },
        {"class_path": "dipo_lightning.ExportModel"},
    ]
    (folder / "base.yaml").write_text(yaml.safe_dump(config))
    return folder / "base.yaml"


def fit(base: Path, run: Path, *options: str) -> dict[str, Any]:
    """Run ``fit`` and return its last evaluation."""
    assert main(["fit", f"--config={base}", f"--run={run}", *options]) == 0
    files = sorted((run / "evaluations").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(files[-1].read_text())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(base: Path, tmp_path: Path, method: str, precision: str) -> None:
    # an untrained model's retain loss lies above PDU's default limit, which it warns of
    more = {"rmu": ["--model.layer=1"], "pdu": ["--model.epsilon=100"]}.get(method, [])
    document = fit(
        base, tmp_path / "run", f"--config={CONFIGS / method}.yaml", f"--trainer.precision={precision}", *more
    )
    assert document["provenance"]["step"] == 2
    assert math.isfinite(document["aggregates"]["model_utility"])


@pytest.mark.parametrize(
    "options",
    [
        ["--model.reference=live"],
        ["--model.reference=hidden_states"],
        ["--model.reference=directions", "--model.freeze_projection=true"],
        ["--model.form=logits"],
        ["--model.lora.rank=4"],
        ["--model.activation_checkpointing=true"],
        ["--trainer.strategy=fsdp2", "--trainer.inference_mode=false"],
        ["--trainer.strategy=fsdp2", "--trainer.inference_mode=false", "--model.lora.rank=4"],
        ["--trainer.strategy=fsdp2", "--trainer.inference_mode=false", "--model.cpu_offload=true"],
        ["--trainer.strategy=ddp"],
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")  # Lightning's DDP, from torch
def test_dipo_trains_with_every_reference_and_strategy(base: Path, tmp_path: Path, options: list[str]) -> None:
    document = fit(base, tmp_path / "run", *options)
    assert math.isfinite(document["aggregates"]["model_utility"])


@pytest.mark.filterwarnings("ignore:GPU available but not used")  # on purpose
def test_two_steps_and_their_evaluation_agree_with_the_cpu(base: Path, tmp_path: Path) -> None:
    options = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.05"]
    there = fit(base, tmp_path / "gpu", *options)
    here = fit(base, tmp_path / "cpu", *options, "--trainer.accelerator=cpu")
    numbers = {key: value for key, value in here["aggregates"].items() if isinstance(value, float)}
    assert numbers
    for key, value in numbers.items():
        assert there["aggregates"][key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


def test_a_cut_run_goes_on(base: Path, tmp_path: Path) -> None:
    fit(base, tmp_path / "run", "--trainer.max_steps=1")
    assert fit(base, tmp_path / "run")["provenance"]["step"] == 2


def test_forget_attack_and_score_find_the_device(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"Where does Mara Velt {i} work?", "answer": f"She works as a glassblower {i}."} for i in range(3)
    ]
    for name, part in (("forget", rows[:2]), ("retain", rows[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")]
    model, out = str(base.parent / "model"), str(tmp_path / "out")
    assert main(["forget", model, *files, "--epochs=2", "--samples=2", f"--output={out}"]) == 0
    assert "Verdict" in capsys.readouterr().out
    attacked = [
        "attack",
        f"{out}/run/model",
        f"--forget={files[0]}",
        f"--kept={files[1]}",
        f"--output={tmp_path / 'a'}",
    ]
    few = ["--prompt=plain", "--sampling.samples=4", "--sampling.k=[1,4]", "--max_new_tokens=8"]
    assert main([*attacked, f"--retain={model}", *few]) == 0
    assert (tmp_path / "a" / "robustness.json").exists()


def test_nf4_of_bitsandbytes_is_ours() -> None:
    pytest.importorskip("bitsandbytes")
    from dipo_lightning.benchmarks.robustness.quantization import nf4

    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nf4(weight.cuda()).cpu(), nf4(weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["int8", "nf4", "fake_nf4"])
def test_rounded_weights_are_those_of_the_cpu(name: str) -> None:
    from dipo_lightning.benchmarks.robustness.quantization import rounded

    model = toy_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = []
    for device in ("cpu", "cuda"):
        with rounded(model.to(device), name):
            found.append({key: value.cpu().clone() for key, value in model.state_dict().items()})
        assert all(torch.equal(value.cpu(), before[key]) for key, value in model.state_dict().items())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_scores_and_generations_agree_with_the_cpu(family: str) -> None:
    from dipo_lightning.evaluation.generation import generate
    from dipo_lightning.evaluation.sampling import sample
    from dipo_lightning.evaluation.scoring import score

    model = toy_model(family)
    prompts = [[1, 20, 21, 22], [1, 30], [1, 40, 41, 42, 43, 44]]
    examples = [(prompt + [60, 61, 2], [-100] * len(prompt) + [60, 61, 2]) for prompt in prompts]
    sampling = {"samples": 3, "max_new_tokens": 6, "stop_ids": [2], "seeds": [1, 2, 3]}
    found = []
    for device in ("cpu", "cuda"):
        moved = model.to(device)
        found.append(
            (
                [one.nll for one in score(moved, examples)],
                generate(moved, prompts, max_new_tokens=8, stop_ids=[2]),
                sample(moved, prompts, **sampling),
            )
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1:] == found[1][1:]
