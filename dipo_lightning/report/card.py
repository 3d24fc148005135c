"""The model card of an exported model: method, settings, data fingerprint and measured results, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import yaml

from dipo_lightning.data.files import is_hub_name
from dipo_lightning.evaluation.aggregates import document_meanings, flat_numbers, interval_text
from dipo_lightning.evaluation.benchmark import benchmark_of
from dipo_lightning.report.runs import Document, of_one_model, read_documents
from dipo_lightning.safety.display import table_in_markdown
from dipo_lightning.safety.redaction import without_paths, without_secrets

_NOT_SHOWN = ("pretrained", "reference_cache", "trust_remote_code", "revision")
_RUN_SETTINGS = {
    "trainer": (
        *("max_epochs", "max_steps", "precision", "strategy", "accumulate_grad_batches", "gradient_clip_val"),
        *("devices", "num_nodes"),
    ),
    "data": ("class_path", "split", "prompt", "prompt_options", "max_length", "batch_size", "seed"),
    "model": ("optimizer",),
}
_MOST_LINES = 40


@dataclass
class CardFacts:
    """Facts that a card states.

    Attributes:
        name: The model's own name.
        base: The model it was made from: a hub name, or a path, of which the last part is shown.
        method: Class of the module.
        settings: The module's hyper-parameters.
        data: Rows and fingerprints by part (`dipo_lightning.data.rows.fingerprints`).
        run: The run's log folder, whose evaluations and configuration are read; None for no run.
        step: Optimiser step of the weights; results of later steps are left out.
        adapters: Whether the folder holds LoRA adapters only.
        licence: Identifier of the model's licence; empty if it is not known.
    """

    name: str
    base: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    run: Path | None = None
    step: int | None = None
    adapters: bool = False
    licence: str = ""


def model_card(facts: CardFacts) -> str:
    """Write the card, Markdown with the hub's YAML header, without access tokens or paths of this machine."""
    evaluations = {} if facts.run is None else _until(read_documents(facts.run), facts.step)
    recorded = (documents[-1]["provenance"].get("data") for documents in evaluations.values())
    data = facts.data or next(filter(None, recorded), {})
    unlearned = "forget" in data or "retain_loss" in facts.settings
    shown = {key: value for key, value in facts.settings.items() if key not in _NOT_SHOWN and not key.startswith("_")}
    parts = [
        _header(facts, unlearned),
        f"# {_plain(facts.name)}\n\n`{_code(_base_name(facts.base))}` after "
        f"{'unlearning' if unlearned else 'training'} with **{_plain(facts.method)}** of "
        "[dipo-lightning](https://pypi.org/project/dipo-lightning/).",
        _use(facts),
        "## Method and settings\n\n" + _settings(_public(shown)),
        _run_section(facts.run),
        _data_section(data),
        _results(evaluations, facts.step),
        _LIMITS if unlearned else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_LIMITS = """## Limits

Unlearning is no proof of erasure. The numbers above are about these rows and these questions; others, asked in other
words, may still be answered. Further training can bring forgotten text back, and somebody with the weights can look for
traces that no answer shows."""


def _header(facts: CardFacts, unlearned: bool) -> str:
    tags = [
        *(["machine-unlearning"] if unlearned else []),
        "dipo-lightning",
        facts.method.lower().removesuffix("module"),
    ]
    head: dict[str, Any] = {"library_name": "peft" if facts.adapters else "transformers"}
    if is_hub_name(facts.base):
        head["base_model"] = facts.base
    if facts.licence:
        head["license"] = facts.licence
    head |= {"pipeline_tag": "text-generation", "tags": tags}
    return "---\n" + yaml.safe_dump(head, sort_keys=False) + "---"


def _use(facts: CardFacts) -> str:
    if facts.adapters:
        base = facts.base if is_hub_name(facts.base) else "FOLDER_OF_THE_BASE_MODEL"
        return (
            "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "THIS_FOLDER")\n```'
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```'
    )


def _run_section(run: Path | None) -> str:
    """Return the section with the settings needed to repeat the run, from its saved configuration."""
    file = run / "config.yaml" if run is not None else None
    if file is None or not file.is_file():
        return ""
    config = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    found = {"seed_everything": config.get("seed_everything")}
    for part, names in _RUN_SETTINGS.items():
        section = config.get(part) or {}
        values = {**section, **(section.get("init_args") or {})}
        found |= {f"{part}.{name}": values[name] for name in names if values.get(name) is not None}
    return "## Run\n\n" + _settings(_public(found))


def _data_section(data: Mapping[str, Any]) -> str:
    if not data:
        return "## Data\n\nNo fingerprint of the data was recorded."
    rows = ([part, str(what["rows"]), f"`{what['sha256']}`"] for part, what in data.items())
    return "## Data\n\n" + table_in_markdown(["part", "rows", "SHA-256 of the rows"], rows)


def _results(evaluations: Mapping[str, Sequence[Document]], step: int | None) -> str:
    parts = []
    for name, documents in evaluations.items():
        documents = of_one_model(documents)
        benchmark = benchmark_of(documents[-1])
        if benchmark is not None and (table := benchmark.table(documents[-1])):
            parts.append(f"### {benchmark.title}\n\n{table}")
            continue
        now, made = flat_numbers(documents[-1]["aggregates"]), documents[-1]["provenance"].get("step")
        before = flat_numbers(documents[0]["aggregates"]) if len(documents) > 1 else {}
        start = f"before at step {documents[0]['provenance'].get('step')}, after " if before else ""
        meanings = document_meanings(documents[-1])
        old = "" if made == step or step is None else f" (the weights are those of step {step})"
        ends = {key: f" {interval_text(both)}" for key, both in (documents[-1].get("intervals") or {}).items()}
        labels = {key: _plain(meanings[key].label + meanings[key].unit_behind) for key in now}
        lines = [
            [labels[key], _number(before.get(key)), _number(value) + ends.get(key, "")] for key, value in now.items()
        ]
        table = table_in_markdown(["number", "before", "after"], lines[:_MOST_LINES])
        parts.append(f"Evaluation `{name}`: {start}at step {made}{old}.\n\n{table}")
    return "## Measured results\n\n" + ("\n\n".join(parts) or "No evaluation was made of these weights.")


def _until(evaluations: Mapping[str, Sequence[Document]], step: int | None) -> dict[str, list[Document]]:
    """Leave out evaluations made at a later step than that of the weights."""
    found = {}
    for name, documents in evaluations.items():
        kept = [d for d in documents if step is None or d["provenance"].get("step", 0) <= step]
        if kept:
            found[name] = kept
    return found


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    return without_paths(without_secrets(values))


def _settings(values: Mapping[str, Any]) -> str:
    rows = ([_plain(key), f"`{_code(str(value))}`"] for key, value in values.items() if value is not None)
    return table_in_markdown(["setting", "value"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _base_name(base: str) -> str:
    if is_hub_name(base) or base.startswith("package:"):
        return base
    return (PureWindowsPath(base) if "\\" in base else PurePath(base)).name


def _plain(text: str) -> str:
    """Escape a text for Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Escape a text for use between backticks in a table cell."""
    return " ".join(text.replace("`", "'").replace("|", "/").split())
