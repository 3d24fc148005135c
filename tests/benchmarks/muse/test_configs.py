"""The configurations of MUSE say what was published, and their classes and options exist."""

from __future__ import annotations

import importlib
import inspect
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml

from dipo_lightning.comparison import sequences as scaling
from dipo_lightning.methods.dipo.loss import dipo_loss
from tests.helpers.plain_dipo import margin

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "muse"


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def options(cls):
    return {
        name for base in cls.__mro__ if "__init__" in vars(base) for name in inspect.signature(base.__init__).parameters
    }


def parts(config):
    yield from (config["model"], config["data"], config["model"]["init_args"]["optimizer"], config["trainer"]["logger"])
    yield from config["trainer"]["callbacks"]


@pytest.mark.parametrize("name", ["news", "books", "small", "smollm2"])
def test_every_class_and_option_exists(name):
    for part in parts(read(name)):
        module, _, cls = part["class_path"].rpartition(".")
        known = options(getattr(importlib.import_module(module), cls))
        assert set(part.get("init_args", {})) <= known, part["class_path"]


@pytest.mark.parametrize("name", ["news", "books"])
def test_the_published_settings(name):
    config = read(name)
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert model["optimizer"]["init_args"]["lr"] == 1e-5
    assert model.get("schedule", "constant") == "constant"
    assert data["max_length"] == 2048
    assert data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == 32
    saving = next(c["init_args"] for c in trainer["callbacks"] if c["class_path"].endswith("ModelCheckpoint"))
    assert (saving["save_top_k"], saving["every_n_epochs"]) == (-1, 1)
    assert model["reduction"] == "mean"


def test_the_small_run_is_measured_as_its_retrained_model_was():
    callbacks = read("small")["trainer"]["callbacks"]
    options = next(c["init_args"] for c in callbacks if c["class_path"].endswith("MUSEEvaluation"))
    measuring = files("dipo_lightning.quickstart") / "configs" / "muse_measuring.yaml"
    [measured] = yaml.safe_load(measuring.read_text())["trainer"]["callbacks"]
    differing = {name: value for name, value in options.items() if name != "retain_log"}
    assert measured["init_args"] == {**differing, "baseline": "none"}


def test_what_keeps_the_memory_small_is_on():
    model, data = read("smollm2")["model"]["init_args"], read("smollm2")["data"]["init_args"]
    assert (model["activation_checkpointing"], model["form"], model["reference"]) == (True, "hidden", "hidden_states")
    assert (data["max_length"], data["batch_size"], model["reduction"]) == (2048, 1, "mean")


@pytest.mark.parametrize(("name", "config"), [("scalability", "scal"), ("sustainability", "sust")])
def test_the_sequences(name, config):
    arguments = read(name)
    assert set(arguments) <= set(inspect.signature(getattr(scaling, name)).parameters)
    assert arguments["parts"] == [f"{config}/forget_{fold}" for fold in (1, 2, 3, 4)]
    scaling.read_config(FOLDER.parent / f"{arguments['run']}.yaml")


def test_a_long_piece_saturates_the_sum_and_not_the_configured_mean():
    """Two hundredths of a nat a token: the sum has all but stopped pushing, the mean has hardly begun."""
    model = read("news")["model"]["init_args"]
    gap, rows = torch.full((2047, 1), 0.02), torch.zeros(2047, dtype=torch.long)
    push = {}
    for reduction, beta in (("sum", 0.1), (model["reduction"], model["beta"])):
        u = margin(torch.ones(2047, 1), gap, torch.zeros(2047, 1), rows, 1, reduction).requires_grad_()
        dipo_loss(u, beta).sum().backward()
        push[reduction] = -u.grad.item()  # 2 sigmoid(-beta u): 1 where unlearning starts
    assert push["sum"] == pytest.approx(0.033, abs=1e-3)
    assert push["mean"] == pytest.approx(0.990, abs=1e-3)
