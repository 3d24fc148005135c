"""Config of one run: that of the base, with another method, settings and seed."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.cli.main import DEFAULT_CLASSES
from dipo_lightning.cli.messages import explained, parameters_of
from dipo_lightning.comparison.plan import Method, Settings
from dipo_lightning.errors import InputError, root_cause
from dipo_lightning.evaluation.benchmark import import_class

Config = dict[str, Any]

OUTSIDE_THE_LOSS = {"reference_cache"}
"""Options of `UnlearningModule` that do not change the loss, so that every method takes them over from the base."""


def read_base(pattern: str, seed: int) -> Config:
    """Read the base config of ``seed``."""
    path = Path(pattern.replace("{seed}", str(seed)))
    if not path.is_file():
        raise InputError(
            f"There is no base config {path}. `base` is the config of an unlearning run; the quickstart writes one: "
            f"dipo-lightning quickstart --seed {seed} --output {path.parent}"
        )
    return read_fit_config(path)


def read_fit_config(path: Path) -> Config:
    """Read the config of a ``fit``, with the sections of model and data in their long form.

    Raises:
        InputError: The file cannot be read, or is not the config of a ``fit``.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict) or not all(isinstance(config.get(part), str | dict) for part in DEFAULT_CLASSES):
        raise InputError(f"{path} is not a config of `dipo-lightning fit`: it has no `model` or no `data`.")
    for part, usual in DEFAULT_CLASSES.items():  # as `fit` reads a section without a class
        section = config[part]
        if isinstance(section, dict) and not {"class_path", "init_args"} & section.keys():
            section = {"init_args": section}
        config[part] = {"class_path": f"dipo_lightning.{usual}", **subclass(section)}
    return config


@functools.cache
def fit_parser(part: str) -> Any:
    """Return the parser by which `fit` reads a section: ``trainer``, ``model`` or ``data``."""
    import lightning.pytorch as pl

    import dipo_lightning
    from dipo_lightning.cli.trainer import Parser

    for name in dipo_lightning.__all__:  # the parser knows a class by its bare name once it is loaded
        getattr(dipo_lightning, name)
    kind = {"trainer": pl.Trainer, "model": pl.LightningModule, "data": pl.LightningDataModule}[part]
    parser = Parser(exit_on_error=False)
    parser.add_lightning_class_args(kind, part, subclass_mode=part != "trainer")
    return parser


@functools.cache
def parsed(part: str, section: str) -> Any:
    """Parse a section, given as JSON, as `fit` does.

    Raises:
        InputError: The section names a class that cannot be imported or an unknown option, or has a wrong value.
    """
    from jsonargparse import ArgumentError

    parser = fit_parser(part)
    try:
        return parser.parse_object({part: json.loads(section)})
    except ArgumentError as error:
        raise InputError(explained(str(error), parser)) from error


def data_module(section: str) -> Any:
    """Build the data module of a section, given as JSON, as `fit` does."""
    try:
        return fit_parser("data").instantiate_classes(parsed("data", section)).data
    except ValueError as error:  # the parser wraps what a constructor raises
        raise root_cause(error) from error


def run_config(base: Config, method: Method, settings: Settings, seed: int, export: bool) -> Config:
    """Return the config of one run: the base's, with the method's class and settings and the run's seed."""
    config = copy.deepcopy(base)
    for place in ("ckpt_path", "run"):  # they belong to the base's own run
        config.pop(place, None)
    config["seed_everything"] = seed
    config["trainer"] = trainer_section(config.get("trainer") or {}, export)
    config["model"] = model_section(config["model"], method)
    if "seed" in accepted_options(import_class(config["data"]["class_path"])):
        config["data"]["init_args"]["seed"] = seed
    accepted = accepted_options(import_class(config["model"]["class_path"]))
    names = {
        option: "optimizer.init_args.lr" if option == "lr" and "lr" not in accepted else option for option in settings
    }
    for option in sorted(settings, key=lambda option: names[option].count(".")):  # a section before its parts
        assign(config, names[option], settings[option])
    return config


def trainer_section(trainer: Config, export: bool) -> Config:
    """Return the base's Trainer section for a run in its own folder, which exports its model there or not."""
    from dipo_lightning.callbacks.results import ExportModel

    section = without_output_paths(trainer)
    kept = [callback for callback in section["callbacks"] if callback_class(callback["class_path"]) is not ExportModel]
    if export:
        kept.append({"class_path": "dipo_lightning.ExportModel", "init_args": {"folder": "model"}})
    return section | {"callbacks": kept, "enable_progress_bar": False}


def without_output_paths(trainer: Config) -> Config:
    """Return a Trainer section without output paths, since all files of a run belong in its own folder."""
    from lightning.pytorch.callbacks import Checkpoint

    kept = callbacks(trainer)
    for callback in kept:
        if issubclass(callback_class(callback["class_path"]), Checkpoint):
            callback["init_args"] = {
                name: value for name, value in callback["init_args"].items() if name not in ("dirpath", "folder")
            }
    places = ("logger", "default_root_dir", "enable_checkpointing")
    return {name: value for name, value in trainer.items() if name not in places} | {"callbacks": kept}


def model_section(base: Config, method: Method) -> Config:
    """Return the model section of ``method``.

    A method of another class than the base's takes over the options for loading, adapting and optimising the model, but
    not those of the loss, for which it has its own defaults.
    """
    own = import_class(base["class_path"])
    cls = own if method.class_path is None else import_class(method.class_path)
    options = base["init_args"]
    if cls is not own:
        shared = shared_options() & accepted_options(cls)
        options = {name: value for name, value in options.items() if name in shared}
    return {"class_path": method.class_path or base["class_path"], "init_args": copy.deepcopy(options)}


def shared_options() -> set[str]:
    """Return the names of the model options that any method takes over from the base."""
    from dipo_lightning.methods.language_model import LanguageModelModule

    return accepted_options(LanguageModelModule) | OUTSIDE_THE_LOSS


def accepted_options(cls: type) -> set[str]:
    """Return the names that a class accepts, following ``**options`` up to its base classes."""
    return set(parameters_of(cls))


def usual_options(cls: type) -> Config:
    """Return the defaults of a class's options; required ones are left out."""
    defaults = {name: parameter.default for name, parameter in parameters_of(cls).items()}
    return {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}


def assign(config: Config, option: str, value: Any) -> None:
    """Set an option by its dotted name (see `Method.settings`) in ``config``.

    Raises:
        InputError: It is a part of a text, a number or a list.
    """
    first, _, rest = option.partition(".")
    if first == "trainer":
        place, names = config["trainer"], rest.split(".")
    else:
        part, names = ("data", rest.split(".")) if first == "data" else ("model", option.split("."))
        place = config[part]["init_args"]
        if names[0] == "optimizer" and len(names) > 1:
            adamw = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.01}}  # the modules' own default
            place["optimizer"] = subclass(place.get("optimizer") or adamw)
    for name in names[:-1]:
        place[name] = place.get(name) or {}
        if not isinstance(place[name], dict):
            raise InputError(f"There is no {option} to set: {name} has no parts with names.")
        place = place[name]
    place[names[-1]] = copy.deepcopy(value)  # a copy, as later options may set parts of it


def callbacks(trainer: Config) -> list[Config]:
    """Return the callbacks of a Trainer's section in their long form."""
    found = trainer.get("callbacks") or []
    return [subclass(callback) for callback in (found if isinstance(found, list) else [found])]


def callback_class(path: str) -> type:
    """Import the class of a callback; a bare name is one of this package or of Lightning, as for `fit`."""
    for package in ("dipo_lightning", "dipo_lightning.callbacks", "lightning.pytorch.callbacks"):
        if "." not in path and hasattr(importlib.import_module(package), path):
            path = f"{package}.{path}"
    found: type = import_class(path)
    return found


def subclass(value: str | Config) -> Config:
    """Return a section in its long form, with ``class_path`` and ``init_args``."""
    if isinstance(value, str):
        return {"class_path": value, "init_args": {}}
    return {**value, "init_args": dict(value.get("init_args") or {})}
