"""Options refuse what cannot work and say so."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from dipo_lightning import DiPOModule
from dipo_lightning.cli.configs import read_template
from dipo_lightning.errors import InputError
from dipo_lightning.methods.dipo.pair import PairOptions

METHOD_FILE = Path(__file__).resolve().parents[3] / "configs" / "methods" / "dipo.yaml"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"selection": "best"}, "selection"),
        ({"k": 0}, "k is"),
        ({"k": 2.5}, "k is"),
        ({"k": True}, "k is"),
        ({"p": 0.0}, "p is"),
        ({"p": 1.0}, "p is"),
        ({"rho": 0.0}, "rho"),
        ({"rho": 1.5}, "rho"),
        ({"memory_vector": "centred"}, "memory_vector"),
        ({"source": "both"}, "source is 'both'"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
    ],
)
def test_bad_option_is_named(change: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name):
        PairOptions(**change)


def test_edges_are_allowed() -> None:
    assert PairOptions(rho=1.0, k=1, alpha=1e-9).rho == 1.0


def test_vocabulary_must_leave_a_token_outside() -> None:
    PairOptions("top_k", k=9).check_vocabulary(10)
    with pytest.raises(InputError, match="k is 10 but the vocabulary has 10"):
        PairOptions("top_k", k=10).check_vocabulary(10)
    PairOptions(selection="top_p", k=10).check_vocabulary(10)
    with pytest.raises(InputError, match="needs at least 2"):
        PairOptions(selection="top_p").check_vocabulary(1)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PairOptions().alpha = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("config", ["quickstart", "methods/dipo"])
def test_class_method_file_and_quickstart_have_one_default(config: str) -> None:
    read: Any = (
        read_template("quickstart/configs/unlearning")
        if config == "quickstart"
        else yaml.safe_load(METHOD_FILE.read_text("utf-8"))
    )
    options, usual = read["model"]["init_args"], inspect.signature(DiPOModule).parameters
    assert PairOptions(**options["pair"]) == usual["pair"].default == PairOptions()
    for name in ("beta", "reduction", "scale"):
        assert options.get(name, usual[name].default) == usual[name].default
