"""Every method through the command line: a base and the method's small file, a few steps on a toy model."""

import csv
import inspect
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dipo_lightning
from dipo_lightning.cli.main import class_before, main
from dipo_lightning.methods.dipo.module import DiPOModule
from dipo_lightning.methods.dipo.pair import PairOptions
from dipo_lightning.methods.unlearning import UnlearningModule
from tests.helpers.small_tofu import write_tofu
from tests.helpers.toys import save_toy

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "methods"
DOCS = CONFIGS.parents[1] / "docs"
FILES = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
DEFAULTS = {
    "dipo": {"beta": 0.02, "pair": asdict(PairOptions()), "scale": "2/beta"},
    "grad_ascent": {"retain_loss": "none"},
    "grad_diff": {"gamma": 1.0, "lambda_": 1.0},
    "kl": {"retain_loss": "kl"},
    "idk_dpo": {"beta": 0.1},
    "npo": {"beta": 0.1},
    "simnpo": {"beta": 4.5, "delta": 0.0, "gamma": 0.125},
    "undial": {"strength": 10.0, "lambda_": 0.0},
    "rmu": {"layer": 7, "coefficient": 2.0, "retain_loss": "hidden"},
    "wga": {"beta": 1.0},
    "ce_u": {"skip_tokens": 1, "retain_loss": "none"},
    "satimp": {"beta1": 5.0, "beta2": 1.0, "gamma": 1.0, "lambda_": 0.1},
    "pdu": {"epsilon": 0.3, "dual_step": 5.0, "dual_warmup_epochs": 5, "lambda_": 100.0},
    "altpo": {"beta": 0.1, "per_row": 5, "temperature": 1.0},
    "selective": {"dispreferred": "policy", "retain_loss": "kl", "gamma": 1.0},
}
"""The settings of the sources."""
TOY = {"rmu": ["--model.layer=1"], "pdu": ["--model.epsilon=100"], "altpo": ["--model.max_new_tokens=8"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base for DiPO with options of its own, as a user would have it."""
    folder = tmp_path_factory.mktemp("base")
    save_toy(folder / "model")
    config: dict[str, Any] = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "dipo_lightning.ExportModel"}],
        },
        "model": {
            "class_path": "dipo_lightning.DiPOModule",
            "init_args": {
                "pretrained": str(folder / "model"),
                "beta": 0.77,
                "gamma": 0.5,
                "retain_loss": "none",
                "reference_cache": str(folder / "cache"),
            },
        },
        "data": {
            "class_path": "dipo_lightning.TOFUDataModule",
            "init_args": {"data": str(write_tofu(folder / "data")), "prompt": "plain", "batch_size": 2},
        },
    }
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_every_method_of_the_package_has_its_file() -> None:
    named = {yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2] for path in FILES.values()}
    public = {name: getattr(dipo_lightning, name) for name in dipo_lightning.__all__}
    methods = {
        name for name, value in public.items() if isinstance(value, type) and issubclass(value, UnlearningModule)
    }
    assert named >= methods - {"UnlearningModule", "DPOModule"}  # abstract; DPO is IdkDPO under a wider name
    assert set(DEFAULTS) <= set(FILES)


@pytest.mark.parametrize("method", sorted(FILES))
def test_every_method_has_its_card(method: str) -> None:
    page = (DOCS / "explanation" / "methods.md").read_text(encoding="utf-8")
    cards = {title: card for title, _, card in (part.partition("\n") for part in page.split("\n## ")[1:])}
    name = re.match(r"# ([\w-]+)", FILES[method].read_text(encoding="utf-8"))
    assert name
    (card,) = [card for title, card in cards.items() if name[1] in title.split()]
    assert "**Settings**" in card
    assert "**Fails when**" in card


@pytest.mark.parametrize("method", sorted(FILES))
def test_a_method_runs_from_its_file_on_any_base(base: Path, tmp_path: Path, method: str) -> None:
    stated = yaml.safe_load(FILES[method].read_text())["model"]["init_args"]
    defaults = DEFAULTS.get(method, {})
    assert {name: stated[name] for name in defaults} == defaults
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": ""}}
    (tmp_path / "logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    files = [base, FILES[method], tmp_path / "logger.yaml"]
    options = ["--model.optimizer.init_args.lr=0.01", *TOY.get(method, [])]
    assert main(["fit", *(f"--config={path}" for path in files), *options]) == 0
    run = tmp_path / "version_0"
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    metrics = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert not [tag for tag in rows[0] if tag.startswith("train/") and f"\n| `{tag}` |" not in metrics]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    hyper_parameters = yaml.safe_load((run / "hparams.yaml").read_text())
    assert hyper_parameters["gamma"] == stated["gamma"]  # the base's own is overridden
    assert hyper_parameters["retain_loss"] == stated["retain_loss"]
    assert not [name for name in hyper_parameters if name.startswith("_")], "Lightning's own"
    before, after = (load_file(folder / "model.safetensors") for folder in (base.parent / "model", run / "model"))
    assert set(before) == set(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_idk_dpo_without_alternatives_says_what_to_write(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--config={base}", "--model=IdkDPOModule", "--trainer.logger=false"]
    assert main(["fit", *options, f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert "data.alternatives" in capsys.readouterr().err


@pytest.mark.parametrize("method", sorted(FILES))
def test_a_class_that_is_named_has_its_own_defaults(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    config = yaml.safe_load(base.read_text())
    stated = yaml.safe_load(FILES[method].read_text())["model"]
    config["model"] = {"class_path": stated["class_path"], "init_args": {"pretrained": "anything"}}
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        main(["fit", f"--config={tmp_path / 'named.yaml'}", "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    mine = stated["init_args"].keys() - {"optimizer"}
    assert {name: options[name] for name in mine} == {name: stated["init_args"][name] for name in mine}


CHOICES = [
    (name, value)
    for kind in DiPOModule.__mro__[:3]
    for name, parameter in inspect.signature(kind.__init__).parameters.items()
    if get_origin(parameter.annotation) is Literal
    for value in get_args(parameter.annotation)
]


def test_every_choice_can_be_written(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {("scale", 1), ("reference", "directions"), ("schedule", "cosine")} <= set(CHOICES)
    for name, value in CHOICES:
        with pytest.raises(SystemExit):
            main(["fit", f"--config={base}", f"--model.{name}={value}", "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"][name] == value


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["fit", "--model.beta=1"], False),
        (["fit", "--model", "dipo_lightning.NPOModule"], True),
        (["fit", "--model=dipo_lightning.NPOModule"], True),
        (["fit", "--model.class_path=dipo_lightning.NPOModule"], True),
        (["fit", "--config=short.yaml"], True),
        (["fit", "-c", "long.yaml"], True),
        (["fit", "--config", "none.yaml"], False),
        (["fit", "--config", "none.yaml", "--config", "long.yaml"], True),
        (["fit", "--config=absent.yaml"], False),
    ],
)
def test_dipo_is_the_method_only_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], named: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {
        "short": "model: A",
        "long": "model: {class_path: A}",
        "none": "model: {init_args: {}}",
    }
    for name, text in contents.items():
        Path(f"{name}.yaml").write_text(text)
    assert (class_before("model", args) != "dipo_lightning.DiPOModule") is named
    assert class_before("data", args) == "dipo_lightning.UnlearningDataModule"
