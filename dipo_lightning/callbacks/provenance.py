"""Where a result comes from: versions, seed, model and trainer settings, as plain values."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning.pytorch as pl

import dipo_lightning
from dipo_lightning.data.fingerprint import fingerprints

PACKAGES = ("torch", "transformers", "lightning", "peft", "scipy", "torchmetrics")


def provenance(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """Return what somebody needs to know to repeat a measurement made under ``trainer``."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "versions": {"dipo_lightning": dipo_lightning.__version__} | installed_versions(),
        "method": type(pl_module).__name__,
        "pretrained": getattr(pl_module, "pretrained", None),
        "data": fingerprints(getattr(trainer, "datamodule", None)),
        "seed": int(seed) if seed is not None else None,
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
        "device": pl_module.device.type,
        "processes": trainer.world_size,
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages whose numbers end up in a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
