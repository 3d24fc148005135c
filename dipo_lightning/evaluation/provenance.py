"""Provenance of a result: versions, seeds, fingerprints of data and weights, and the whole configuration."""

import copy
import os
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import SaveConfigCallback

import dipo_lightning
from dipo_lightning.data.rows import fingerprints
from dipo_lightning.evaluation.aggregates import class_path
from dipo_lightning.models.fingerprint import model_fingerprint
from dipo_lightning.safety.redaction import without_home, without_secrets

_OPTIONS: WeakKeyDictionary[SaveConfigCallback, dict[str, Any]] = WeakKeyDictionary()
PACKAGES = ("torch", "transformers", "lightning", "peft", "scipy", "torchmetrics")


def provenance(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """Return everything that is needed to repeat a measurement under ``trainer``; collective.

    It does not depend on the time, or on interruptions of the run.
    """
    seed, data = os.environ.get("PL_GLOBAL_SEED"), getattr(trainer, "datamodule", None)
    found = {
        "versions": {"dipo_lightning": dipo_lightning.__version__} | installed_versions(),
        "method": type(pl_module).__name__,
        "pretrained": getattr(pl_module, "pretrained", None),
        "model": weights(pl_module),
        "data": fingerprints(data),
        "seed": int(seed) if seed is not None else None,
        "data_seed": getattr(data, "seed", None),
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
        "device": pl_module.device.type,
        "processes": trainer.world_size,
        "config": configuration(trainer, pl_module),
    }
    return without_home(without_secrets(found))


def weights(pl_module: pl.LightningModule) -> dict[str, str]:
    """Fingerprint the loaded model (``pretrained``), and the policy's trainable parameters (``trained``).

    In a LoRA run the latter are the adapters alone, which saves time.
    """
    found = {"pretrained": getattr(pl_module, "weights_fingerprint", "")}
    policy = getattr(pl_module, "policy", None)
    if policy is not None:
        found["trained"] = model_fingerprint(policy, trainable_only=True)
    return {name: value for name, value in found.items() if value}


def configuration(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """Return the options of the run as plain values: the config of the command line, or those of a Python program."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            return command_options(callback)
    names = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "limit_train_batches")
    settings = {name: getattr(trainer, name, None) for name in names}
    data, of_data = getattr(trainer, "datamodule", None), ("prompt", "prompt_options", "max_length", "seed")
    options = {name: plain(getattr(data, name, None)) for name in of_data}
    return {
        "trainer": settings,
        "data": {"class_path": class_path(type(data)), "init_args": options} if data is not None else None,
        "model": {"class_path": class_path(type(pl_module)), "init_args": plain(pl_module.hparams)},
    }


def command_options(callback: SaveConfigCallback) -> dict[str, Any]:
    """Return the options of a command as plain values, without the checkpoint from which a run resumes by itself.

    jsonargparse is asked once: that takes as long as some steps.
    """
    if callback not in _OPTIONS:
        config = yaml.safe_load(callback.parser.dump(callback.config, skip_none=False))
        run, checkpoint = config.get("run"), config.get("ckpt_path")
        if run and checkpoint and Path(run) in Path(checkpoint).parents:
            config["ckpt_path"] = None
        _OPTIONS[callback] = config
    return copy.deepcopy(_OPTIONS[callback])


def run_settings(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """Return the settings that describe a run beside the module's hyper-parameters: method, lr, batch sizes, seeds."""
    seed, data = os.environ.get("PL_GLOBAL_SEED"), getattr(trainer, "datamodule", None)
    size = getattr(data, "batch_size", None)
    found = {
        "method": type(pl_module).__name__.removesuffix("Module"),
        "lr": trainer.optimizers[0].defaults.get("lr") if trainer.optimizers else None,
        "batch_size": size,
        "global_batch_size": size and size * trainer.world_size * trainer.accumulate_grad_batches,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "seed": int(seed) if seed is not None else None,
        "data_seed": getattr(data, "seed", None),
    }
    return {name: value for name, value in found.items() if value is not None}


def plain(value: Any) -> Any:
    """Convert a value to types of JSON: dataclasses to dictionaries, tuples to lists, other objects to text."""
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
