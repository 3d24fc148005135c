"""The command ``export``: a Lightning checkpoint as a Hugging Face folder with a model card."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml

from dipo_lightning.errors import InputError, RunError
from dipo_lightning.safety.network import hub_errors
from dipo_lightning.safety.paths import expanded, with_home
from dipo_lightning.safety.redaction import without_home, without_secrets

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILES = (
    *("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "README.md"),
    *("adapter_model.safetensors", "adapter_config.json", "chat_template.jinja", "additional_chat_templates"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model"),
)
"""Files of an export; no other file is uploaded."""
_TEXTS = (".json", ".md", ".jinja", ".txt")


def check_push(name: str, base: str, licence: str | None) -> str:
    """Check an upload before the model is loaded, and return its licence.

    The licence of the base model is read from the hub.

    Raises:
        InputError: The name is invalid or taken, or the licence is unknown or differs from the base model's.
    """
    from huggingface_hub import HfApi

    if not _NAME.fullmatch(name):
        raise InputError(f"push is {name!r}; give OWNER/NAME, such as jane/my-unlearned-model.")
    api = HfApi()
    try:
        if api.repo_exists(name):
            raise InputError(f"{name} is on the hub already, and would be overwritten; give --push another name.")
    except hub_errors() as error:
        raise RunError(
            f"The hub could not be asked about {name}: {_first_line(error)}. Check the network and `hf auth login`."
        ) from error
    of_base = None
    if _NAME.fullmatch(base) and not with_home(base).exists():
        try:
            card: Any = api.model_info(base).card_data
            of_base = card.get("license") if card else None
        except hub_errors():
            of_base = None  # gated, renamed or removed since: the user has to say
    if licence is None and of_base is None:
        raise InputError(
            f"The licence of {base}, from which these weights are made, is unknown. Give "
            "--license, such as apache-2.0 or llama3.2."
        )
    if licence is not None and of_base is not None and licence != of_base:
        raise InputError(
            f"--license is {licence}, but {base}, from which these weights are made, is under {of_base}. Leave "
            "--license out."
        )
    return str(licence or of_base)


def upload(folder: Path, name: str, public: bool) -> str:
    """Upload an exported folder as a new model repository and return its address.

    Raises:
        InputError: The folder holds other files than an export, or its card lacks the licence.
        RunError: The hub refuses the upload.
    """
    from huggingface_hub import HfApi

    check_folder(folder)
    api = HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=False)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by dipo-lightning")
    except hub_errors(ValueError) as error:
        raise RunError(
            f"The upload to {name} failed: {_first_line(error)}. The model is in {folder}. Log in with a token that "
            "may write (`hf auth login`), and check the name."
        ) from error
    return str(address)


def check_folder(folder: Path) -> None:
    """Raise an `InputError` if a folder holds other files, a secret, a path of this user, or a card without licence."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.is_symlink() or not any(fnmatchcase(inside.parts[0], pattern) for pattern in FILES):
            raise InputError(
                f"{file} is not part of an exported model and must not be uploaded; move it out of {folder}."
            )
        if file.is_file() and file.suffix in _TEXTS and file.name != "tokenizer.json":
            text = file.read_text(encoding="utf-8")
            if without_home(text) != text:
                raise InputError(
                    f"{file} contains the path of your home folder, which must not be uploaded; remove it."
                )
            if without_secrets(text) != text:
                raise InputError(f"{file} contains what looks like a token or a password; remove it.")
    card = folder / "README.md"
    head = card_head(card.read_text(encoding="utf-8")) if card.is_file() else {}
    if not head.get("license"):
        raise InputError(
            f"{card} is not a model card with a licence (`license:` in its header); export the model again."
        )


def card_head(text: str) -> dict[str, Any]:
    """Return the YAML header of a model card; empty without one."""
    parts = text.split("---\n", 2)
    head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    return head if isinstance(head, dict) else {}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def export(
    checkpoint: str,
    output: str | None = None,
    adapters: Literal["merged", "separate"] = "merged",
    pretrained: str | None = None,
    trust_remote_code: bool = False,
    push: str | None = None,
    license: str | None = None,
    public: bool = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder: safetensors, tokenizer, generation config, model card.

    The card states method, settings, data fingerprint and the results of the run; it contains no path and no token.

    Args:
        checkpoint: A ``.ckpt`` file that ``fit`` wrote, or a folder of shards.
        output: The folder to write, absent or empty; default is one beside the checkpoint, named after it.
        adapters: For LoRA: ``merged`` into the weights, or ``separate`` (a peft folder).
        pretrained: Present path of the original model, if it was moved.
        trust_remote_code: Allow the original model's own Python code to run, whatever the checkpoint says.
        push: Name of a new model repository on the hub, ``OWNER/NAME``, to upload to; it is private by default. Files
            that are not part of the model, and texts with a token or your home folder, are refused.
        license: Licence of the model for its card, such as ``llama3.2``; default, for an upload, is the original
            model's.
        public: Make the repository public; only with ``push``.
    """
    from dipo_lightning.models.checkpoint import read_checkpoint, restore
    from dipo_lightning.models.export import check_place, save_model
    from dipo_lightning.report.card import CardFacts, model_card

    if public and push is None:
        raise InputError("public makes a repository on the hub public; give --push its name, or leave --public out.")
    source = with_home(checkpoint)
    if not source.name:
        raise InputError(f"{checkpoint!r} is not a checkpoint; give a .ckpt file of fit, or a folder of shards.")
    beside = source.with_name(f"{source.name.removesuffix('.ckpt')}-model")
    folder = beside if output is None else expanded(output, "output")
    check_place(folder, "export")
    found = read_checkpoint(checkpoint)
    if adapters == "separate" and found.settings.get("lora") is None:
        raise InputError(f"{found.path} holds no adapters; leave --adapters out.")
    licence = license or ""
    if push is not None:
        licence = check_push(push, str(found.settings["pretrained"]), license)
    policy, tokenizer = restore(found, pretrained, trust_remote_code)
    run = found.path.resolve().parent.parent  # RUN/checkpoints/x.ckpt
    facts = CardFacts(
        name=folder.resolve().name,
        base=str(found.settings["pretrained"]),
        method=str(found.settings.get("_class_path", "unlearning")).rpartition(".")[2],
        settings=found.settings,
        run=run if (run / "evaluations").is_dir() else None,
        step=found.step,
        adapters=adapters == "separate",
        licence=licence,
    )
    save_model(policy, folder, tokenizer, merge=adapters == "merged", card=model_card(facts))
    print(f"The model is in {folder}; its card is {folder / 'README.md'}")
    if push is not None:
        address = upload(folder, push, public)
        print(f"The {'public' if public else 'private'} repository is {address}")
