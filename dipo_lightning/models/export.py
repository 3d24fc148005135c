"""Export of a policy, sharded or not, with adapters or without, as a Hugging Face folder of safetensors."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn

from dipo_lightning.errors import InputError, RunError
from dipo_lightning.models.distributed import full_state_dict, is_sharded
from dipo_lightning.models.head import causal_lm
from dipo_lightning.models.loading import without_bars
from dipo_lightning.models.lora import dense_copy, is_quantized
from dipo_lightning.safety.redaction import without_home

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PARTIAL = ".partial"
"""End of the name of the folder of an export in progress."""
_REPLACED = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "*.jinja", "additional_chat_templates")
"""Files and folders of an export that a later one of the same model may lack."""


def is_free(folder: Path) -> bool:
    """Return whether an export may go to a folder: it is absent, or empty but for what a killed export began."""
    return not folder.exists() or (folder.is_dir() and all(path.name == PARTIAL for path in folder.iterdir()))


def check_place(folder: Path, owner: str, replace: bool = False) -> None:
    """Check, before training, the folder of an export.

    Args:
        folder: The folder.
        owner: What would write it, for the message.
        replace: Whether its contents may be replaced.

    Raises:
        InputError: It is not free, or cannot be written.
    """
    if not (replace or is_free(folder)):
        raise InputError(f"{folder} is not empty; {owner} would overwrite it. Name another folder or remove it.")
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise InputError(f"{folder} cannot be written: {place} is not a folder that you may write to. Name another.")


def save_model(
    policy: nn.Module,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    merge: bool = True,
    write: bool = True,
    card: str | None = None,
    replace: bool = False,
) -> None:
    """Save ``policy`` as safetensors with its config, generation config and tokenizer.

    Collective where the policy is sharded: every rank calls it, one writes. The folder appears whole or not at all (one
    that is there already is filled at the end, since it may be a mount point, or its parent read-only), and all its
    files have the mode that the umask gives (safetensors' own is 600).

    Args:
        policy: A ``transformers`` causal LM, or a peft model around one.
        folder: The folder to write.
        tokenizer: Saved beside the model.
        merge: Merge LoRA adapters into the weights; else a peft model is saved as adapters.
        write: Whether this process writes (rank 0).
        card: Text of the model card, ``README.md``.
        replace: Whether the folder's contents are an earlier export, to be replaced.

    Raises:
        RunError: The folder can't be written (a full disk, no permission), or has other contents, and the model is
            beside it; its contents are unchanged, unless a move of finished files into it failed: it holds the model
            together with the place that the message names.
    """
    state = full_state_dict(policy) if is_sharded(policy) else None
    if not write:
        return
    folder = folder.resolve()
    taken = not (replace or is_free(folder))
    fill = folder.is_dir() and not taken
    partial = folder / PARTIAL if fill else folder.with_name(folder.name + PARTIAL)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with without_bars():
            _write(policy, state, partial, tokenizer, merge, card)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"The model could not be written to {folder}: {reason}.") from error
    if taken:
        raise RunError(f"{folder} is not empty any more, and what is there is no export of this run: {partial} has it.")
    try:
        if fill:
            _move_up(partial)
        else:
            partial.rename(folder)
    except OSError as error:  # from here on, nothing else holds the model
        raise RunError(
            f"The model is written, but its move into {folder} failed: {error.strerror or error}. The files that are "
            f"still in {partial} belong there; move them yourself."
        ) from error


def _move_up(partial: Path) -> None:
    """Replace the contents of the folder around ``partial`` by its own, the configurations last.

    Each new file takes the place of the old one, and what only the earlier export had goes at the end: a failure at any
    moment leaves all of the new files, here or there. Files that no export writes stay.
    """
    new = sorted(partial.iterdir(), key=lambda file: file.suffix == ".json")
    for file in new:
        target = partial.parent / file.name
        if target.is_dir():
            shutil.rmtree(target)
        file.replace(target)
    names = {partial.name, *(file.name for file in new)}
    for old in [old for pattern in _REPLACED for old in partial.parent.glob(pattern) if old.name not in names]:
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()
    partial.rmdir()


def _write(
    policy: nn.Module,
    state: dict | None,
    partial: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    merge: bool,
    card: str | None,
) -> None:
    """Write the files of an export."""
    saver: Any = policy
    if hasattr(policy, "merge_and_unload") and merge:
        merged_copy(policy, state).save_pretrained(partial)
    else:
        saver.save_pretrained(partial, state_dict=state)
        _hide_home(partial / "adapter_config.json")
    if tokenizer is not None:
        try:
            tokenizer.save_pretrained(partial)
        except Exception as error:
            if type(error) is not Exception:  # the tokenizers library raises nothing more specific on a full disk
                raise
            raise OSError(errno.EIO, str(error)) from error
    if card is not None:
        (partial / "README.md").write_text(card, encoding="utf-8")
    os.umask(umask := os.umask(0o077))
    for file in partial.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)


def _hide_home(file: Path) -> None:
    """Remove the user's home folder from the base model's path in the adapters' configuration."""
    if file.is_file():
        content = without_home(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def merged_copy(policy: Any, state: dict | None = None) -> Any:
    """Return an unsharded copy of a peft model with the adapters merged into its weights; ``policy`` is unchanged."""
    if state is None:
        dense: Any = dense_copy(policy) if is_quantized(policy) else copy.deepcopy(policy).to("cpu")
        return dense.merge_and_unload()
    from peft import get_peft_model

    inner = causal_lm(policy)
    base = type(inner)(copy.deepcopy(inner.config))  # by its own class, which may come from outside transformers
    base.generation_config = copy.deepcopy(inner.generation_config)
    fresh = get_peft_model(base, policy.peft_config["default"])
    fresh.load_state_dict(state)
    return fresh.merge_and_unload()
