"""Promises of every module: checkpoints that load again, the optimiser and its schedule."""

from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from dipo_lightning import DiPOModule, UnlearningDataModule
from dipo_lightning.callbacks import Checkpoint
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.methods.gradient_ascent import GradDiffModule
from dipo_lightning.methods.pdu import PDUModule
from dipo_lightning.models.checkpoint import read_checkpoint
from dipo_lightning.models.lora import LoRA
from tests.helpers.small_tofu import write_tofu
from tests.helpers.toys import save_toy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_tofu(folder)
    save_toy(folder / "model")
    return folder


def data_of(files: Path, model: str = "model", **options: Any) -> UnlearningDataModule:
    rows = (str(files / f"{name}.json") for name in ("forget10", "retain90"))
    return UnlearningDataModule(str(files / model), *rows, prompt="plain", batch_size=2, **options)


def trained(
    files: Path, module: pl.LightningModule, steps: int = 1, ckpt_path: str | None = None, **limits: Any
) -> pl.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", logger=False, **(quiet | {"max_steps": steps} | limits))
    trainer.fit(module, data_of(files), ckpt_path=ckpt_path)
    return trainer


class Chosen(GradDiffModule):
    """Gives an option to its base itself."""

    def __init__(self, pretrained: str, limit: float = 5.0, **options: Any) -> None:
        super().__init__(pretrained, lambda_=0.5, **options)
        self.limit = limit


class Renamed(GradDiffModule):
    """Calls the model by another name."""

    def __init__(self, model: str, limit: float = 5.0, **options: Any) -> None:
        super().__init__(model, **options)
        self.limit = limit


class Passing(GradDiffModule):
    """Passes on what it gets."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limit = 3.0


@pytest.mark.parametrize("cls", [Chosen, Renamed, Passing])
def test_a_subclass_is_loaded_with_the_arguments_that_it_got(files: Path, tmp_path: Path, cls: Any) -> None:
    options = {} if cls is Passing else {"limit": 3.0}
    module = cls(str(files / "model"), schedule="linear", **options)
    trained(files, module).save_checkpoint(tmp_path / "x.ckpt")
    loaded = cls.load_from_checkpoint(tmp_path / "x.ckpt")
    assert (loaded.limit, loaded.schedule, loaded.lambda_) == (3.0, "linear", 0.5 if cls is Chosen else 1.0)
    for name, weight in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert read_checkpoint(tmp_path / "x.ckpt").settings["pretrained"] == str(files / "model"), "which export needs"


def test_a_model_given_as_a_path_resumes(files: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"reference_cache": tmp_path / "cache"}
    trained(files, DiPOModule(files / "model", **options)).save_checkpoint(tmp_path / "x.ckpt")  # type: ignore[arg-type]
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    assert saved["pretrained"] == str(files / "model")
    module = DiPOModule(files / "model", **options)  # type: ignore[arg-type]
    assert trained(files, module, steps=2, ckpt_path=str(tmp_path / "x.ckpt")).global_step == 2


class Kind(Enum):
    HARD = "hard"


class WithArgument(GradDiffModule):
    def __init__(self, pretrained: str, given: Any = None, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.given = given


class Ignoring(WithArgument):
    def __init__(self, pretrained: str, given: Any = None, **options: Any) -> None:
        super().__init__(pretrained, given, **options)
        self.save_hyperparameters(ignore=["given", "optimizer"])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


PLAIN = [
    (Kind.HARD, "hard"),
    (np.float64(0.5), 0.5),
    ([{"a": np.int64(2)}, (Kind.HARD, None)], [{"a": 2}, ["hard", None]]),
    (torch.ones(3), torch.ones(3)),
    (LoRA(rank=2), asdict(LoRA(rank=2))),
]


@pytest.mark.parametrize(("given", "right"), PLAIN, ids=lambda value: type(value).__name__)
def test_an_argument_with_a_plain_form_is_loaded_in_it(files: Path, tmp_path: Path, given: Any, right: Any) -> None:
    module = WithArgument(str(files / "model"), given=given, optimizer=sgd)
    trained(files, module).save_checkpoint(tmp_path / "x.ckpt")
    loaded = WithArgument.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).given
    assert repr(loaded) == repr(right)


ODD: dict[str, Any] = {
    "function": sgd,
    "partial": partial(sgd),
    "module": torch.nn.Linear(2, 2),
    "array": np.ones(3),
    "range": range(3),
    "list of functions": [sgd],
}


@pytest.mark.filterwarnings("ignore:Attribute 'given' is an instance of `nn.Module`")
@pytest.mark.parametrize("odd", ODD)
def test_an_argument_without_a_plain_form_is_refused_and_the_remedy_works(
    files: Path, tmp_path: Path, odd: str
) -> None:
    def module(cls: type[WithArgument]) -> WithArgument:
        return cls(str(files / "model"), given=ODD[odd], optimizer=sgd)

    refused = r"^The argument given of WithArgument is of the type \w+, .*\(ignore=\['given', 'optimizer'\]\)"
    with pytest.raises(InputError, match=refused):
        trained(files, module(WithArgument), callbacks=[Checkpoint(folder=str(tmp_path))], enable_checkpointing=True)
    trainer = trained(files, module(WithArgument))  # without checkpoints
    with pytest.raises(InputError, match=refused):
        trainer.save_checkpoint(tmp_path / "x.ckpt")
    trained(files, module(Ignoring)).save_checkpoint(tmp_path / "x.ckpt")
    loaded = Ignoring.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True, given=ODD[odd], optimizer=sgd)
    assert loaded.given is ODD[odd]
    assert trained(files, loaded, steps=2).global_step == 2


def test_training_on_with_another_optimizer_after_loading_is_said(files: Path, tmp_path: Path) -> None:
    def made(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.25)

    module = GradDiffModule(str(files / "model"), optimizer=made, schedule="linear")
    trained(files, module).save_checkpoint(tmp_path / "x.ckpt")
    trained(files, GradDiffModule.load_from_checkpoint(tmp_path / "x.ckpt", optimizer=made))  # a warning is an error
    with pytest.warns(UserWarning, match=r"\(lr 0\.25 there, 1e-05 here\)\. Give load_from_checkpoint the optimizer"):
        trained(files, GradDiffModule.load_from_checkpoint(tmp_path / "x.ckpt"))


def test_a_schedule_over_the_run_needs_a_limit_other_than_time(files: Path) -> None:
    limits = {"max_steps": -1, "max_epochs": -1, "max_time": "00:00:00:01"}
    for schedule in ("linear", "cosine"):
        with pytest.raises(InputError, match=rf"^model\.schedule is {schedule}, but .* trainer\.max_epochs"):
            trained(files, GradDiffModule(str(files / "model"), schedule=schedule), **limits)  # type: ignore[arg-type]
    rates: list[float] = []

    class Watched(GradDiffModule):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            super().on_before_optimizer_step(optimizer)
            rates.append(optimizer.param_groups[0]["lr"])

    trained(files, Watched(str(files / "model"), warmup_steps=2), **limits)
    assert rates[:4] == pytest.approx([0, 5e-6, 1e-5, 1e-5])


@pytest.mark.filterwarnings("ignore:.* were cut at the end:UserWarning")
@pytest.mark.parametrize("first", ["validate", "fit"])
def test_rows_of_a_model_that_is_loaded_already_are_compared_with_it(files: Path, tmp_path: Path, first: str) -> None:
    save_toy(tmp_path / "model", "gpt2", n_positions=24)
    module = GradDiffModule(str(tmp_path / "model"))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    getattr(trainer, first)(module, data_of(files, max_length=24))
    with pytest.raises(InputError, match="the model has positions for 24 only: set data.max_length to 24"):
        trainer.fit(module, data_of(files))


class Bare(GradDiffModule):
    """Overrides hooks as Lightning's own are overridden: without ``super()``."""

    def setup(self, stage: str) -> None:
        self.stage = stage

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.first = batch_idx

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.log("mine/step", 1.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.mine = checkpoint["mine"]


class Mixin:
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 2


class Mixed(Mixin, PDUModule):
    """Takes a bare hook from a mixin; PDU's own saves the multiplier."""


def test_a_hook_without_super_loses_nothing_of_the_package(files: Path, tmp_path: Path) -> None:
    module = Bare(str(files / "model"))
    trainer = trained(files, module, 2, log_every_n_steps=1)
    assert {"mine/step", "train/loss", "train/gradient_norm"} <= trainer.callback_metrics.keys()
    assert (module.stage, module.first, len(module._batches), module.policy_is_pretrained) == ("fit", 1, 1, False)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = Bare.load_from_checkpoint(tmp_path / "x.ckpt")
    assert loaded.mine == 1
    assert not loaded.policy_is_pretrained
    assert loaded.weights_fingerprint == module.weights_fingerprint
    with pytest.raises(InputError, match="trainer.precision is 16-true"):  # of the base's setup
        trained(files, Bare(str(files / "model")), precision="16-true")


def test_a_hook_of_a_mixin_or_with_super_runs_the_package_s_once(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Mixed(str(files / "model"), epsilon=10.0)
    trained(files, module).save_checkpoint(tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert (kept["mine"], kept["dual"]) == (2, module.dual)
    assert "weights_fingerprint" in kept
    logged = []
    monkeypatch.setattr(PDUModule, "log_terms", lambda self, terms: logged.append(self.trainer.global_step))
    trained(files, PDUModule(str(files / "model"), epsilon=10.0), 2, log_every_n_steps=1)
    assert logged == [0, 1]


def test_a_changed_policy_is_not_cached_under_the_pretrained_model_s_name(files: Path, tmp_path: Path) -> None:
    module = DiPOModule(str(files / "model"), reference_cache=str(tmp_path), reference="hidden_states")
    module.configure_model()
    assert module.policy is not None
    with torch.no_grad():
        next(module.policy.parameters()).add_(1.0)
    with pytest.raises(RunError, match="is not .*model as it was loaded"):
        trained(files, module)


@pytest.mark.parametrize("given", [None, "adamw"])
def test_an_optimizer_that_cannot_be_called_is_a_sentence(given: Any) -> None:
    with pytest.raises(InputError, match=f"model.optimizer is {given!r}; give a function of the parameters"):
        GradDiffModule("model", optimizer=given)
