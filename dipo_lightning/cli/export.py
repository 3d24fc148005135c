"""The command ``export``: a Lightning checkpoint as a Hugging Face folder with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dipo_lightning.errors import InputError


def export(
    checkpoint: str,
    output: str | None = None,
    adapters: Literal["merged", "separate"] = "merged",
    pretrained: str | None = None,
    trust_remote_code: bool = False,
    push: str | None = None,
    license: str | None = None,  # noqa: A002
    public: bool = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder: safetensors, tokenizer, generation config, model card.

    The card states method, settings, data fingerprint and what the run measured; it holds no path and no token.

    Args:
        checkpoint: A ``.ckpt`` file that ``fit`` wrote, or a folder of shards.
        output: The folder to write; it must be absent or empty. Default is one beside the checkpoint, with its name.
        adapters: For LoRA: ``merged`` into the weights, or ``separate`` (a peft folder).
        pretrained: Where the original model is now, if it was moved since.
        trust_remote_code: Allow the original model's own Python code to run; what the checkpoint says doesn't count.
        push: A new model repository on the hub, ``OWNER/NAME``, that the folder is uploaded to, a private one. What is
            no part of the model, and a text with a token or your home folder in it, is refused.
        license: The licence that it is passed on under, such as ``llama3.2``; default is the original model's.
        public: Let everybody see the repository.
    """
    from dipo_lightning.cli import push as hub
    from dipo_lightning.models.checkpoint import read_checkpoint, restore
    from dipo_lightning.models.export import save_model
    from dipo_lightning.report.card import CardFacts, model_card

    source = Path(checkpoint)
    if not source.name:
        raise InputError(f"{checkpoint!r} names no checkpoint; give a .ckpt file of fit, or a folder of shards.")
    folder = Path(output) if output is not None else source.with_name(f"{source.name.removesuffix('.ckpt')}-model")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty; export would overwrite it. Name another folder or remove it.")
    found = read_checkpoint(checkpoint)
    if adapters == "separate" and found.settings.get("lora") is None:
        raise InputError(f"{found.path} holds no adapters; leave --adapters out.")
    licence = hub.check_push(push, str(found.settings["pretrained"]), license) if push is not None else ""
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
    print(f"The model is in {folder}; what it is and what was measured is in {folder / 'README.md'}")
    if push is not None:
        address = hub.push(folder, push, public)
        print(f"It is on the hub, {'for everybody' if public else 'private'}: {address}")
