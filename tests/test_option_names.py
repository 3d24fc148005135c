"""One name, one meaning: an option shares its name with nothing else of its class."""

from collections.abc import Iterator

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule

import dipo_lightning
import dipo_lightning.callbacks
from dipo_lightning.cli.messages import parameters_of
from dipo_lightning.methods.unlearning import UnlearningModule
from tests.helpers.methods import CLASSES, options_of


def configured_classes() -> Iterator[type]:
    """The public classes that a configuration names as model, data or callback."""
    for package in (dipo_lightning, dipo_lightning.callbacks):
        for name in package.__all__:
            found = getattr(package, name)
            if isinstance(found, type) and issubclass(found, (LightningModule, LightningDataModule, Callback)):
                yield found


@pytest.mark.parametrize("cls", sorted(set(configured_classes()), key=lambda cls: cls.__name__))
def test_no_option_has_the_name_of_a_method_or_property(cls: type) -> None:
    options = parameters_of(cls)
    assert not [name for name in options if callable(found := getattr(cls, name, None)) or isinstance(found, property)]


@pytest.mark.parametrize("cls", [UnlearningModule, *CLASSES])
def test_an_attribute_with_the_name_of_an_option_holds_its_value(cls: type[UnlearningModule]) -> None:
    module = cls("model", **options_of(cls))
    given = {name: value for name, value in module.hparams.items() if isinstance(value, str | int | float)}
    assert {"retain_loss", "reference", "chunk_size"} <= given.keys()
    assert {name: getattr(module, name, value) for name, value in given.items()} == given
