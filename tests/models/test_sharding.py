"""The sharding strategies, by name, from Python and from YAML."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from dipo_lightning import FSDP2Strategy
from dipo_lightning.cli.main import main
from dipo_lightning.errors import InputError
from dipo_lightning.methods.dipo.module import DiPOModule
from dipo_lightning.models import distributed
from dipo_lightning.models.distributed import check_accelerator, check_strategy, is_sharded, least, transformer_blocks
from tests.helpers.toys import FAMILIES, toy_model

REFUSED = ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_2", FSDPStrategy(), ModelParallelStrategy(),
           {"class_path": "lightning.pytorch.strategies.FSDPStrategy"}]  # fmt: skip


@pytest.mark.parametrize("strategy", REFUSED, ids=lambda each: each if isinstance(each, str) else type(each).__name__)
def test_strategies_that_would_not_train_rightly_are_refused(strategy: Any) -> None:
    with pytest.raises(InputError, match="write strategy: fsdp2|Write strategy: fsdp2"):
        check_strategy(strategy)


@pytest.mark.parametrize(
    "strategy",
    ["ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_spawn_find_unused_parameters_true", DDPStrategy(start_method="fork"),
     {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"start_method": "spawn"}}],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)  # fmt: skip
def test_processes_that_would_not_give_the_trained_model_back_are_refused(strategy: Any) -> None:
    with pytest.raises(InputError, match=r"the trained model would be lost with them\. Write strategy: ddp;"):
        check_strategy(strategy)


@pytest.mark.parametrize(
    "strategy",
    ["auto", "ddp", "fsdp2", "ddp_find_unused_parameters_true", DDPStrategy(), FSDP2Strategy(),
     {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"start_method": "popen"}},
     {"class_path": "dipo_lightning.FSDP2Strategy", "init_args": {"save_distributed_checkpoint": True}}],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)  # fmt: skip
def test_others_are_not(strategy: Any) -> None:
    check_strategy(strategy)


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_here_names_option_and_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(AcceleratorRegistry[kind]["accelerator"], "is_available", lambda: False)
    with pytest.raises(InputError, match=f"^trainer.accelerator is {name}, .*--trainer.accelerator auto or cpu"):
        check_accelerator(name)
    check_accelerator("auto")
    check_accelerator("cpu")


def test_the_name_is_registered() -> None:
    trainer = pl.Trainer(strategy="fsdp2", accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    assert isinstance(trainer.strategy, FSDP2Strategy)
    assert not trainer.strategy._save_distributed_checkpoint


@pytest.mark.parametrize("options", [{"strategy": "fsdp"}, {"trainer.strategy.class_path": "FSDPStrategy"}], ids=str)
def test_the_command_line_names_what_to_write(options: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    strategy = "fsdp" if "strategy" in options else "lightning.pytorch.strategies.FSDPStrategy"
    data = ["--data=dipo_lightning.UnlearningDataModule", "--data.forget=nothing.jsonl"]
    arguments = ["fit", "--model.pretrained=nothing", *data, f"--trainer.strategy={strategy}"]
    assert main([*arguments, "--trainer.accelerator=cpu"]) == 2
    assert "Write strategy: fsdp2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"strategy": "fsdp2", "precision": "bf16-mixed", "inference_mode": False}, "precision: 32-true"),
        ({"strategy": "fsdp2", "inference_mode": True}, "inference_mode: false"),
        ({"precision": "bf16-true", "inference_mode": False}, "bf16-true"),
    ],
)
def test_combinations_that_cannot_be_right_are_refused_at_setup(options: dict[str, Any], named: str) -> None:
    module = DiPOModule("nothing")
    module.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **options)
    with pytest.raises(InputError, match=named):
        module.setup("fit")


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_every_family(family: str) -> None:
    model = toy_model(family)
    assert len(transformer_blocks(model)) == 2
    assert not is_sharded(model)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile's backend needs a C compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, about itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_give_the_gradients_of_plain_ones() -> None:
    """With the backend that users get; in two processes the blocks are traced only, which takes seconds."""
    plain, compiled = toy_model().train(), toy_model().train()
    for block in transformer_blocks(compiled):
        block.compile()
    ids = torch.arange(3, 43).view(2, 20)
    for model in (plain, compiled):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert one.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-5 * one.grad.norm()  # 1.2e-6 was seen


@pytest.mark.parametrize("name", ["cpu", "gpu", "ddp", "fsdp2", "fsdp2_multinode"])
def test_trainer_files_name_a_strategy_and_precision_that_pass(name: str) -> None:
    import yaml

    settings = yaml.safe_load((Path(__file__).parents[2] / f"configs/trainer/{name}.yaml").read_text())["trainer"]
    check_strategy(settings.get("strategy", "auto"))
    assert settings["inference_mode"] is False
    assert settings["precision"] == ("32-true" if "fsdp2" in name or name == "cpu" else "bf16-mixed")
    accelerator = {"accelerator": "cpu", "devices": 1, "num_nodes": 1}
    strategy = settings.get("strategy", "auto")
    if isinstance(strategy, dict):
        strategy = FSDP2Strategy(**strategy["init_args"])
    pl.Trainer(**settings | accelerator | {"strategy": strategy, "logger": False, "enable_checkpointing": False})


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_agree_on_the_smallest_number(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert least(7) == 7
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (rank, 2))
    monkeypatch.setattr(distributed, "gather", lambda own: {1 - rank: 3, **own})
    assert least(7) == 3
    assert least(2) == 2
