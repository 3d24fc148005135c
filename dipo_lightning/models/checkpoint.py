"""Restoration of the model in a Lightning checkpoint, which is one file or a folder of shards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from dipo_lightning.errors import InputError, options_of
from dipo_lightning.models.loading import load_policy, load_tokenizer
from dipo_lightning.models.lora import NF4, LoRA, add_lora, quantize_base
from dipo_lightning.safety.paths import with_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PREFIX = "policy."
_META = "meta.pt"  # what Lightning puts beside the shards


@dataclass
class Checkpoint:
    """Contents of a checkpoint.

    Attributes:
        path: The file or folder.
        settings: The module's hyper-parameters, plain values.
        weights: The policy's state dict.
        epoch: Number of epochs begun when it was written.
        step: Optimiser steps done.
        tokenizer: Source of the data module's tokenizer; None for the model's own.
    """

    path: Path
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    epoch: int
    step: int
    tokenizer: str | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU without running code from it (``weights_only``).

    Args:
        path: A ``.ckpt`` file, or a folder of shards as ``save_distributed_checkpoint`` writes it.

    Raises:
        InputError: The checkpoint is missing or broken, holds more than plain values and tensors, or is not of a module
            of this package.
    """
    path = with_home(path)
    content = _read_shards(path) if path.is_dir() else _read_file(path)
    settings = (content.get("settings") or {}) | (content.get("hyper_parameters") or {})
    state = content.get("state_dict") or {}
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    if not weights or "pretrained" not in settings:
        raise InputError(
            f"{path} is not a checkpoint of a module of this package (a policy's weights, and `pretrained` among the "
            "hyper-parameters). Give one that `dipo-lightning fit` wrote."
        )
    epoch, step = int(content.get("epoch", 0)), int(content.get("global_step", 0))
    return Checkpoint(path, dict(settings), weights, epoch, step, content.get("tokenizer"))


def read_settled(path: Path) -> dict[str, Any]:
    """Read a checkpoint (of a sharded one all but the weights), and check that training can resume from it."""
    content = _read_meta(path) if path.is_dir() else _read_file(path)
    missing = {"loops", "callbacks", "global_step"} - set(content)
    if missing:
        raise InputError(
            f"{path} is not a checkpoint that training can resume from (it has no {', '.join(sorted(missing))}). Give "
            "one that `dipo-lightning fit` wrote."
        )
    return content


def restore(
    checkpoint: Checkpoint, pretrained: str | None = None, trust_remote_code: bool = False
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Build the model of a checkpoint, in evaluation mode, with its tokenizer.

    A checkpoint cannot permit the original model's own code to run; only ``trust_remote_code`` does.

    Args:
        checkpoint: From `read_checkpoint`.
        pretrained: New location of the original model, if it was moved.
        trust_remote_code: Allow the original model's own code to run.
    """
    settings = checkpoint.settings
    source = str(pretrained or settings["pretrained"])
    where: dict[str, Any] = {"revision": settings.get("revision"), "trust_remote_code": trust_remote_code}
    try:
        policy: nn.Module = load_policy(source, **where)
        own = checkpoint.tokenizer in (None, settings["pretrained"])
        tokenizer = load_tokenizer(source, **where) if own else load_tokenizer(str(checkpoint.tokenizer))
    except InputError as error:
        raise InputError(
            f"The checkpoint belongs to the model {source}, which cannot be loaded: {error} If it was moved, give "
            "--pretrained."
        ) from error
    fit_embeddings(policy, checkpoint.weights)
    if settings.get("lora") is not None:
        lora = options_of("model.lora", LoRA, settings["lora"])
        policy = add_lora(policy, lora)
        if lora.base == NF4:
            policy = quantize_base(policy, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        policy.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        reason = str(error).split("\n\t")[1] if "\n\t" in str(error) else str(error)
        raise InputError(
            f"The weights of {checkpoint.path} do not fit {source}: {reason} Give the model it was trained from with "
            "--pretrained."
        ) from error
    return policy.eval(), tokenizer


def fit_embeddings(policy: Any, weights: dict[str, Tensor]) -> None:
    """Give a model as many embeddings as the weights have: the module's ``load`` may have resized them for new tokens.

    Args:
        policy: A ``transformers`` causal LM.
        weights: Weights of that model, with or without the names of adapters around it.
    """
    embedding = policy.get_input_embeddings().weight
    name = next(name for name, parameter in policy.named_parameters() if parameter is embedding)
    rows = next((len(value) for kept, value in weights.items() if kept.endswith(name)), len(embedding))
    if rows != len(embedding):
        policy.resize_token_embeddings(rows, mean_resizing=False)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such checkpoint.") from error
    except UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))  # the rest of torch's message says how to load it unsafely
        held = f" ({what[1]})" if what else ""
        raise InputError(f"{path} holds more than tensors and plain values{held}, so it is not loaded.") from error
    except (RuntimeError, EOFError, OSError) as error:
        if path.is_file() and not is_zipfile(path):  # torch's message says how to save it otherwise
            raise InputError(
                f"{path} cannot be read as a checkpoint: it is another kind of file, or cut off. Give a .ckpt file "
                "that `dipo-lightning fit` wrote."
            ) from error
        raise InputError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a Lightning checkpoint.")
    return content


def _read_meta(folder: Path) -> dict[str, Any]:
    """Read the file beside the shards, after checking that these can't run code either."""
    from dipo_lightning.safety.shard_files import CONTENTS, check_shards

    if not (folder / CONTENTS).is_file() or not (folder / _META).is_file():
        raise InputError(f"{folder} is a folder, but holds no sharded checkpoint ({CONTENTS} and {_META}).")
    check_shards(folder)
    return _read_file(folder / _META)


def _read_shards(folder: Path) -> dict[str, Any]:
    """Read the weights of a folder of shards, without the optimiser's states."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    from dipo_lightning.safety.shard_files import SafeReader

    content = _read_meta(folder)
    reader = SafeReader(folder)
    state: dict[str, Any] = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype)
        for name, kept in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(f"state_dict.{_PREFIX}") and isinstance(kept, TensorStorageMetadata)
    }
    load(state, storage_reader=reader, no_dist=True)
    return content | {"state_dict": {name.removeprefix("state_dict."): value for name, value in state.items()}}
