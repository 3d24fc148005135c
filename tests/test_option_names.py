"""One name, one meaning: an option shares its name with nothing else of its class."""

from collections.abc import Iterator
from typing import Any, Literal, get_origin, get_type_hints

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule

import dipo_lightning
import dipo_lightning.callbacks
from dipo_lightning import (
    Best,
    DiPOModule,
    ExportModel,
    InputError,
    MemorizationEvaluation,
    MUSEEvaluation,
    NPOModule,
    RobustnessEvaluation,
    UnlearningDataModule,
)
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


CHOICES = sorted(
    {
        (cls.__name__, name, cls)
        for cls in configured_classes()
        for base in cls.__mro__
        if base.__module__.startswith("dipo_lightning") and "__init__" in vars(base)
        for name, kind in get_type_hints(vars(base)["__init__"]).items()
        if get_origin(kind) is Literal and name in parameters_of(cls)
    },
    key=str,
)


@pytest.mark.parametrize(("cls", "option"), [(cls, name) for _, name, cls in CHOICES])
def test_an_unknown_choice_is_refused_by_every_class_that_has_it(cls: type, option: str) -> None:
    given: dict[str, Any] = {"monitor": "x", "threshold": 1.0, "pretrained": "model"}
    given = {name: value for name, value in given.items() if name in parameters_of(cls)}
    with pytest.raises(InputError, match=rf"{cls.__name__}\.{option} is 'Nothing'; it must be \w+"):
        cls(**given, **{option: "Nothing"})


class Mine(NPOModule):
    """Has a choice of its own, and passes another one on."""

    def __init__(self, pretrained: str, speed: Literal["slow", "fast"] = "slow", near: str = "nll") -> None:
        super().__init__(pretrained, retain_loss=near)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NPOModule("m", retain_loss="NLL"), "retain_loss is 'NLL'; .* Did you mean nll?"),
        (lambda: NPOModule("m", retain_loss=None), "retain_loss is None; .* Did you mean none?"),
        (lambda: UnlearningDataModule(forget_tokens="privat"), "forget_tokens is 'privat'; .* Did you mean private?"),
        (lambda: Mine("m", speed="fats"), r"Mine\.speed is 'fats'; it must be slow or fast. Did you mean fast?"),
        (lambda: Mine("m", near="k"), r"Mine\.retain_loss is 'k'; it must be nll or kl or none."),
        (lambda: ExportModel(best={"monitor": "x", "mode": "Max"}), "best.mode is 'Max'; .* Did you mean max?"),
        (lambda: ExportModel(best=Best("x", mode="Max")), "best.mode is 'Max'"),
        (lambda: ExportModel(best={}), "best is {}, which is no Best: .*'monitor'"),
        (lambda: ExportModel(best="x"), "best is 'x'; give Best"),
        (lambda: DiPOModule("m", pair={"alfa": 1}), r"model\.pair has no option alfa. Did you mean alpha?"),
        (lambda: DiPOModule("m", lora=4), r"model\.lora is 4; give LoRA"),
        (lambda: DiPOModule("m", lora={"base": "nf"}), r"lora\.base is 'nf'; it must be float32 or nf4"),
        (lambda: MemorizationEvaluation(schedule={"every": 1}), "schedule has no option every"),
        (lambda: MUSEEvaluation(measuring={"on_missing": "Skip"}), r"measuring\.on_missing is 'Skip'"),
        (lambda: RobustnessEvaluation(wordings={"few": 1}), "wordings has no option few"),
    ],
)
def test_a_misspelt_choice_or_option_names_the_right_one(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_groups_of_options_may_be_dictionaries() -> None:
    module = DiPOModule("m", pair={"alpha": 0.3}, lora={"rank": 4})
    assert (module.pair.alpha, module.lora.rank) == (0.3, 4)  # type: ignore[union-attr]
    assert ExportModel(best={"monitor": "x"}).best == Best("x")
    found = MemorizationEvaluation(schedule={"every_n_steps": 2}, measuring={"generate": False})
    assert (found.schedule.every_n_steps, found.measuring.generate) == (2, False)
    attacks = RobustnessEvaluation(wordings={"few_shot": 2}, schedule={"at_start": False})
    assert attacks.schedule.at_start is False
    assert attacks.attacks[1].few_shot == 2
