"""The config of a run: the base's, with another method in it and nothing of the base's own method."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml

from dipo_lightning import DiPOModule
from dipo_lightning.comparison.configs import accepted_options, callback_class, import_class, read_base, run_config
from dipo_lightning.comparison.plan import Method, read_comparison
from dipo_lightning.comparison.work import evaluated_on
from dipo_lightning.errors import InputError
from tests.helpers.acted import write_base

OWN = f"{__name__}.Own"
SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs" / "compare").glob("*.yaml"))


class MyExportModel(pl.Callback):
    """A user's callback, whose name ends as that of the package's does."""


class Own(DiPOModule):
    """A method of a user's project: a subclass, registered nowhere."""

    def __init__(self, pretrained: str, strength: float = 1.0, **options: Any) -> None:
        super().__init__(pretrained, **options)


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    return read_base(str(write_base(tmp_path)), seed=0)


def made(
    base: dict[str, Any], class_path: str | None, seed: int = 3, export: bool = False, **settings: Any
) -> dict[str, Any]:
    return run_config(base, Method("name", class_path), settings, seed, export)


def test_another_method_keeps_the_model_and_drops_the_loss(base: dict[str, Any]) -> None:
    model = made(base, "dipo_lightning.NPOModule")["model"]
    assert model["class_path"] == "dipo_lightning.NPOModule"
    assert model["init_args"] == {"pretrained": "target", "lora": {"rank": 4}, "reference_cache": "cache"}


@pytest.mark.parametrize(
    "class_path", [None, "dipo_lightning.DiPOModule", "dipo_lightning.methods.dipo.module.DiPOModule"]
)
def test_the_base_s_own_method_keeps_its_options(base: dict[str, Any], class_path: str | None) -> None:
    options = made(base, class_path, **{"pair.alpha": 2.0})["model"]["init_args"]
    assert options == base["model"]["init_args"] | {"pair": {"alpha": 2.0}}


def test_a_method_from_outside_needs_its_class_path_only(base: dict[str, Any]) -> None:
    options = made(base, OWN, strength=0.5)["model"]["init_args"]
    assert options == {"pretrained": "target", "lora": {"rank": 4}, "reference_cache": "cache", "strength": 0.5}
    assert {"strength", "beta", "gamma", "lora", "optimizer"} <= accepted_options(Own)


def test_settings_reach_the_optimiser_the_data_and_the_trainer(base: dict[str, Any]) -> None:
    settings = {"lr": 1e-3, "data.alternatives": "idk", "trainer.max_epochs": 7, "optimizer.init_args.eps": 1e-6}
    config = made(base, "dipo_lightning.IdkDPOModule", **settings)
    optimizer = config["model"]["init_args"]["optimizer"]
    assert optimizer == {
        "class_path": "torch.optim.AdamW",
        "init_args": {"weight_decay": 0.01, "lr": 1e-3, "eps": 1e-6},
    }
    assert config["data"]["init_args"]["alternatives"] == "idk"
    assert config["trainer"]["max_epochs"] == 7


def test_the_optimiser_of_the_base_is_shared(base: dict[str, Any]) -> None:
    base["model"]["init_args"]["optimizer"] = {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 1.0, "momentum": 0.9},
    }
    optimizer = made(base, "dipo_lightning.NPOModule", lr=0.5)["model"]["init_args"]["optimizer"]
    assert optimizer == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "momentum": 0.9}}


SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}


@pytest.mark.parametrize(
    "method", [Method("m", None, {"lr": 0.5, "optimizer": SGD}), Method("m", None, {"lr": 0.5}, {"optimizer": [SGD]})]
)
def test_the_learning_rate_reaches_an_optimiser_that_is_named_after_it(base: dict[str, Any], method: Method) -> None:
    [settings] = method.candidates()
    options = run_config(base, method, settings, 3, False)["model"]["init_args"]
    assert options["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9, "lr": 0.5}}


def test_a_part_of_a_section_is_set_in_the_run_s_config_alone(base: dict[str, Any]) -> None:
    settings = {"pair.alpha": 2.0, "pair": {"rho": 0.3}}
    assert made(base, None, **settings)["model"]["init_args"]["pair"] == {"rho": 0.3, "alpha": 2.0}
    assert settings["pair"] == {"rho": 0.3}


def test_everything_is_written_into_the_run_s_folder(base: dict[str, Any]) -> None:
    base["trainer"]["callbacks"] += [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": "/x", "save_last": True},
        },
        {"class_path": "dipo_lightning.callbacks.Checkpoint", "init_args": {"folder": "/x", "every_n_steps": 5}},
        {"class_path": "Checkpoint", "init_args": {"folder": None}},
    ]
    base |= {"ckpt_path": "old.ckpt", "run": "runs/base"}
    before = copy.deepcopy(base)
    config = made(base, None)
    assert base == before
    assert config["seed_everything"] == config["data"]["init_args"]["seed"] == 3
    assert not {"ckpt_path", "run"} & config.keys()
    trainer = config["trainer"]
    assert not {"default_root_dir", "logger"} & trainer.keys(), "--run says where"
    assert [callback["init_args"] for callback in trainer["callbacks"]][1:] == [
        {"save_last": True},
        {"every_n_steps": 5},
        {},
    ]
    exported = made(base, None, export=True)["trainer"]["callbacks"][-1]
    assert exported == {"class_path": "dipo_lightning.ExportModel", "init_args": {"folder": "model"}}


def test_a_callback_of_the_user_s_own_stays_whatever_its_name_ends_with(base: dict[str, Any]) -> None:
    own = {"class_path": f"{__name__}.MyExportModel", "init_args": {"folder": "x"}}
    base["trainer"]["callbacks"] += [own, "ExportModel"]
    assert made(base, None)["trainer"]["callbacks"][1:] == [own]


@pytest.mark.parametrize(
    "name", ["LearningRateMonitor", "EarlyStopping", "StopOnCollapse", "ModelCheckpoint", "Checkpoint"]
)
def test_callbacks_have_their_short_names_as_in_fit(base: dict[str, Any], name: str) -> None:
    base["trainer"]["callbacks"].insert(0, name)
    assert callback_class(name).__name__ == name
    assert evaluated_on(base, "base.yaml", None).name == "tofu"
    assert made(base, None)["trainer"]["callbacks"][0] == {"class_path": name, "init_args": {}}


def test_each_seed_may_have_a_base_of_its_own(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_base(tmp_path / f"quick-seed{seed}", seed)
    bases = [read_base(f"{tmp_path}/quick-seed{{seed}}/unlearn.yaml", seed) for seed in (1, 2)]
    assert [base["data"]["init_args"]["data"] for base in bases] == ["data1", "data2"]


def test_short_forms_are_read(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump({"model": "dipo_lightning.NPOModule", "data": {"class_path": "TOFUDataModule"}}))
    config = made(read_base(str(path), 0), None)
    assert config["model"] == {"class_path": "dipo_lightning.NPOModule", "init_args": {}}
    assert config["data"]["init_args"] == {"seed": 3}


@pytest.mark.parametrize("wrapped", [True, False])
def test_sections_without_a_class_are_of_the_usual_one(tmp_path: Path, wrapped: bool) -> None:
    sections = {"model": {"pretrained": "x", "beta": 0.3}, "data": {"forget": "mine.json"}}
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump({k: {"init_args": v} for k, v in sections.items()} if wrapped else sections))
    config = made(read_base(str(path), 0), None)
    assert config["model"] == {"class_path": "dipo_lightning.DiPOModule", "init_args": sections["model"]}
    assert config["data"]["class_path"] == "dipo_lightning.UnlearningDataModule"
    assert config["data"]["init_args"] == {"forget": "mine.json", "seed": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "quickstart writes one"),
        ("a: [", "is not YAML"),
        ("model: {}", "not a config of"),
        ("7", "not a config of"),
        ("{model: {pretrained: x}, data: }", "not a config of"),
    ],
)
def test_a_base_that_is_none_is_said(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "base.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_base(str(path), 0)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_setting_of_a_shipped_comparison_is_an_option_of_its_class(base: dict[str, Any], path: Path) -> None:
    for method in read_comparison(path).methods:
        for settings in method.candidates():
            model = run_config(base, method, settings, 0, False)["model"]
            assert set(model["init_args"]) <= accepted_options(import_class(model["class_path"])), method.name


@pytest.mark.parametrize("class_path", ["no_such_package.Method", "dipo_lightning.NoSuchModule", "os.path.join"])
def test_a_class_that_is_none_is_said(base: dict[str, Any], class_path: str) -> None:
    with pytest.raises(InputError, match="cannot be imported|is not a class"):
        made(base, class_path)
