"""Every attack on every model, one after the other: each result is kept at once, so that a killed attack goes on."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import dipo_lightning
from dipo_lightning.benchmarks.robustness.attack import Attack, Condition, Plain, Subject
from dipo_lightning.benchmarks.robustness.metrics import Robustness, settings_pictures
from dipo_lightning.benchmarks.robustness.tables import markdown_table
from dipo_lightning.data.rows import data_fingerprint
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import class_path, log_aggregates
from dipo_lightning.evaluation.run_folder import finite, write_json
from dipo_lightning.models.fingerprint import model_fingerprint

Document = dict[str, Any]
Load = Callable[[], nn.Module]
RESULT = "robustness.json"
TABLE = "robustness.md"


def build_attacks(chosen: Sequence[Attack], further: Mapping[str, Any] | None = None) -> list[Attack]:
    """Return the attacks to make, the plain question first.

    Args:
        chosen: The package's own.
        further: A user's, by name: a class path, or ``class_path`` with ``init_args``.

    Raises:
        InputError: A class cannot be imported or built, or is no `Attack`.
    """
    return [Plain(), *chosen, *(_built(name, spec) for name, spec in (further or {}).items())]


def _built(name: str, spec: Any) -> Attack:
    spec = {"class_path": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        raise InputError(f"further.{name} is {spec!r}; give a class, my_project.MyAttack, or class_path and init_args.")
    module, _, kind = str(spec["class_path"]).rpartition(".")
    try:
        made = getattr(importlib.import_module(module), kind)(**(spec.get("init_args") or {}))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"further.{name}: {spec['class_path']} cannot be made: {error}.") from error
    if not isinstance(made, Attack):
        raise InputError(f"further.{name}: {spec['class_path']} is no dipo_lightning.benchmarks.robustness.Attack.")
    return made


def planned(attacks: Sequence[Attack], subject: Subject) -> list[tuple[Attack, Condition]]:
    """Return everything that will be tried, checked.

    Raises:
        InputError: An option or the data does not allow an attack, or two conditions share a name.
    """
    found = [(attack, condition) for attack in attacks for condition in attack.conditions(subject)]
    names = [condition.name for _, condition in found]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Two attacks have a condition named {doubled[0]!r}; rename one.")
    return found


def settings_of(
    plan: Sequence[tuple[Attack, Condition]], subject: Subject, models: Sequence[str], steps: Mapping[str, list[int]]
) -> dict[str, Any]:
    """Return everything that changes a number, as plain values; with it a log's metrics are made again.

    Args:
        plan: From `planned`.
        subject: The questions.
        models: Names of the attacked models.
        steps: Steps of each curve that was measured.
    """
    conditions = [
        {"name": condition.name, "title": condition.title, "kind": condition.kind, "attack": attack.name}
        | ({"steps": steps.get(condition.name, [])} if condition.kind == "curve" else {})
        | ({"k": list(getattr(attack, "k", ()))} if condition.kind == "samples" else {})
        for attack, condition in plan
    ]
    return {
        "models": list(models),
        "conditions": conditions,
        "attacks": plain_values({attack.name: attack.settings for attack, _ in plan}),
        "prompt_style": subject.style.fingerprint(),
        "max_new_tokens": subject.max_new_tokens,
        "forget_rows": len(subject.forget),
        "data": data_fingerprint(subject.forget) if subject.forget else "",
    }


def plain_values(value: Any) -> Any:
    """Return options as plain values: dataclasses as dictionaries, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return plain_values(vars(value)) if hasattr(value, "__dataclass_fields__") else value


def curve_steps(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the steps of each curve from the names of its measurements, ``{condition}_step{step}``."""
    found: dict[str, list[int]] = {}
    for name in names:
        condition, mark, step = name.rpartition("_step")
        if mark and step.isdigit():
            found.setdefault(condition, []).append(int(step))
    return {condition: sorted(set(steps)) for condition, steps in found.items()}


def document_of(settings: dict[str, Any], sets: dict[str, list[dict[str, Any]]], provenance: Document) -> Document:
    """Return the log of attacks: every row, and what follows from the rows."""
    benchmark = Robustness()
    return {
        "format": benchmark.format,
        "benchmark": class_path(Robustness),
        "settings": settings,
        "provenance": provenance,
        "sets": sets,
        "aggregates": log_aggregates(benchmark, sets, settings),  # type: ignore[arg-type]
        "skipped": {},
    }


def attack_models(
    models: Mapping[str, Load],
    subject: Subject,
    attacks: Sequence[Attack],
    output: Path,
    provenance: Document | None = None,
    say: Callable[[str], object] = print,
) -> Document:
    """Attack every model, write the results, and return the log.

    What was measured before in ``output`` with the same options, data and weights is taken from there.

    Args:
        models: How each is loaded, by its name: ``unlearned``, ``retain``, ``target``.
        subject: The questions.
        attacks: From `build_attacks`.
        output: Folder for the log, the table, the pictures, and the parts that are done.
        provenance: Where the models come from.
        say: Tells what is being done.

    Raises:
        InputError: An attack cannot be made, or ``output`` holds the results of other attacks.
    """
    plan = planned(attacks, subject)
    key = {"settings": settings_of(plan, subject, [], {}), "version": dipo_lightning.__version__}
    sets: dict[str, list[dict[str, Any]]] = {}
    weights: dict[str, str] = {}
    for model, load in models.items():
        policy = load()
        weights[model] = model_fingerprint(policy)
        whole_key = _digest(key | {"weights": weights[model]})
        for attack, condition in plan:
            part = output / "parts" / f"{model}_{condition.name}.json"
            rows = _read_part(part, whole_key)
            if rows is None:
                say(f"{model} model: {condition.title}")
                rows = attack.measure(policy, subject, condition)
                write_json(part, {"key": whole_key, "rows": rows})
                rows = finite(rows)
            sets |= {f"{model}_{name}": found for name, found in rows.items()}
        del policy
    names = [name.removeprefix(f"{model}_") for model in models for name in sets if name.startswith(f"{model}_")]
    settings = settings_of(plan, subject, list(models), curve_steps(names))
    document = document_of(settings, sets, {"epoch": 0, "step": 0} | (provenance or {}) | {"weights": weights})
    write_json(output / RESULT, document)
    (output / TABLE).write_text(markdown_table(document) + "\n", encoding="utf-8")
    for name, figure in settings_pictures(settings, document["aggregates"]).items():
        figure.savefig(output / f"{name}.png")
    return document


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_part(path: Path, key: str) -> dict[str, list[dict[str, Any]]] | None:
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("key") != key:
        raise InputError(
            f"{path.parent.parent} holds the results of attacks with other options, data or weights; give another "
            "output, or remove it."
        )
    rows: dict[str, list[dict[str, Any]]] = content["rows"]
    return rows
