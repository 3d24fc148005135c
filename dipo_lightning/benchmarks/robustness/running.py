"""Run of every attack on every model; each result is stored at once, so that a killed attack can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import dipo_lightning
from dipo_lightning.benchmarks.robustness.attack import Attack, Condition, Measured, Plain, Subject
from dipo_lightning.benchmarks.robustness.metrics import METRICS, Robustness, metric_class, settings_pictures
from dipo_lightning.benchmarks.robustness.tables import markdown_table
from dipo_lightning.data.rows import data_fingerprint
from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.evaluation.aggregates import add_measured, evaluation_document, log_aggregates
from dipo_lightning.evaluation.benchmark import made
from dipo_lightning.evaluation.provenance import plain
from dipo_lightning.evaluation.rows import EvaluatedRows
from dipo_lightning.evaluation.run_folder import finite, write_json
from dipo_lightning.models.fingerprint import model_fingerprint

Document = dict[str, Any]
Load = Callable[[], nn.Module]
RESULT, CONDITIONS = "robustness.json", "parts"
TABLE = "robustness.md"


def named_attacks(
    names: Sequence[str],
    known: Sequence[Attack],
    option: str = "attacks",
    hint: str = "Your own go into `further`.",
) -> list[Attack]:
    """Choose attacks by name.

    Args:
        names: Names of the attacks to make.
        known: Attacks with their options.
        option: The user's option for ``names``, for the message about an unknown one.
        hint: The end of that message.

    Raises:
        InputError: A name is unknown.
    """
    there = {attack.name: attack for attack in known}
    for name in names:
        if name not in there:
            raise InputError(f"{option} has {name!r}; it may have {', '.join(there)}. {hint}")
    return [there[name] for name in names]


def build_attacks(chosen: Sequence[Attack], further: Mapping[str, Any] | None = None) -> list[Attack]:
    """Return the attacks to make, the plain question first.

    Args:
        chosen: Attacks of this package.
        further: Attacks of the user by name: a class path, ``class_path`` with ``init_args``, or an attack.

    Raises:
        InputError: A class cannot be imported or built, or is no `Attack`.
    """
    own = [made(f"further.{name}", one, Attack, "my_project.MyAttack") for name, one in (further or {}).items()]
    return [Plain(), *chosen, *own]


def planned(attacks: Sequence[Attack], subject: Subject) -> list[tuple[Attack, Condition]]:
    """Return every condition of every attack, after checking options and data.

    Raises:
        InputError: An option is out of range, the data lacks what an attack needs, an attack has no condition, two
            conditions share a name, or a metric is unknown or none is given.
    """
    for name in subject.metrics:
        metric_class(name)
    check_numbers("", {name: getattr(subject, name) for name in ("max_new_tokens", "generation_rows", "batch_tokens")})
    if not subject.metrics:
        raise InputError(f"metrics is empty; give at least one of {', '.join(METRICS)}.")
    found = [(attack, condition) for attack in attacks for condition in attack.conditions(subject)]
    for attack in attacks:
        if not any(attack is one for one, _ in found):
            raise InputError(
                f"The attack {attack.name} has no condition to try; give its options at least one, or leave the attack "
                "out."
            )
    names = [condition.name for _, condition in found]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"The condition {doubled[0]} occurs twice; name each attack, share and format once.")
    return found


def settings_of(
    plan: Sequence[tuple[Attack, Condition]], subject: Subject, models: Sequence[str], steps: Mapping[str, list[int]]
) -> dict[str, Any]:
    """Return the settings of a log as plain values: everything that changes a result or is needed for its metrics.

    ``plan`` is from `planned`, ``models`` names the attacked models, and ``steps`` the measured steps of each curve.
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
        "attacks": plain({attack.name: attack.settings for attack, _ in plan}),
        "numbers": list(subject.metrics),
        "prompt_style": subject.style.fingerprint(),
        "max_new_tokens": subject.max_new_tokens,
        "forget_rows": len(subject.forget),
        "data": data_fingerprint(subject.forget) if subject.forget else "",
    }


def curve_steps(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the steps of each curve from the names of its measurements, ``{condition}_step{step}``."""
    found: dict[str, list[int]] = {}
    for name in names:
        condition, mark, step = name.rpartition("_step")
        if mark and step.isdigit():
            found.setdefault(condition, []).append(int(step))
    return {condition: sorted(set(steps)) for condition, steps in found.items()}


def attack_models(
    models: Mapping[str, Load],
    subject: Subject,
    attacks: Sequence[Attack],
    output: Path,
    provenance: Document | None = None,
    say: Callable[[str], object] = print,
    replaced: Path | None = None,
) -> Document:
    """Attack every model, write the results, and return the log.

    Results in ``output`` with the same options, data and weights are reused.

    Args:
        models: Functions that load the models, by name: ``unlearned``, ``retain``, ``target``.
        subject: The questions.
        attacks: Attacks from `build_attacks`.
        output: Folder for the log, the table, the pictures and the finished parts.
        provenance: Origin of the models.
        say: Called with a line for each condition that is measured.
        replaced: A log in the run that the new one will replace.

    Raises:
        InputError: An attack cannot be made, ``output`` holds results of other options, data or weights, or results
            there or in ``replaced`` would be lost.
    """
    plan = planned(attacks, subject)
    if output.exists() and not output.is_dir():
        raise InputError(f"output is {output}, which is a file; give a folder.")
    conditions, result = [condition.name for _, condition in plan], output / RESULT
    refuse_loss(result, "conditions", conditions, _AGAIN)
    if replaced is not None:
        refuse_loss(replaced, "conditions", conditions, _OF_RUN)
        refuse_loss(replaced, "models", models, _OF_RUN)
    shared = {**settings_of([], subject, [], {}), "version": dipo_lightning.__version__}
    evaluated = EvaluatedRows()
    weights: dict[str, str] = {}
    for model, load in models.items():
        policy = load()
        weights[model] = model_fingerprint(policy)
        for attack, condition in plan:
            own = [condition.name, attack.settings, attack.reads(subject, condition), weights[model]]
            key = hashlib.sha256(json.dumps(plain([shared, *own]), sort_keys=True).encode()).hexdigest()
            parts = Parts(output / CONDITIONS, model, key)
            rows = parts.take(condition.name)
            if rows is None:
                say(f"{model} model: {condition.title}")
                rows = measure(attack, policy, replace(subject, keep=parts.keep), condition)
                rows = parts.finish(condition.name, rows)
            for name, found in rows.items():
                evaluated.add(f"{model}_{name}", found, "skip")
        del policy
    refuse_loss(result, "models", models, _AGAIN)
    sets = evaluated.sets
    names = [name.removeprefix(f"{model}_") for model in models for name in sets if name.startswith(f"{model}_")]
    settings = settings_of(plan, subject, list(models), curve_steps(names))
    add_measured(Robustness().metrics(settings).values(), sets, dict.fromkeys(sets, subject.forget))
    where = {"epoch": 0, "step": 0} | (provenance or {}) | {"weights": weights}
    numbers = log_aggregates(Robustness(), evaluated.whole(), settings)
    more = {"skipped": evaluated.skipped, "provenance": where}
    document = evaluation_document(Robustness(), settings, sets, numbers, **more)
    write_json(result, document)
    (output / TABLE).write_text(markdown_table(document) + "\n", encoding="utf-8")
    for name, figure in settings_pictures(settings, document["aggregates"]).items():
        figure.savefig(output / f"{name}.png")
    return document


_AGAIN = "Name those too (what is finished is not measured again), or give another output"
_OF_RUN = "Name those too, or give the exported model in place of the run and another output"


def refuse_loss(log: Path, part: str, names: Collection[str], remedy: str) -> None:
    """Refuse to replace the log of an earlier attack by one that lacks some of its results.

    Args:
        log: File of the earlier log, if there is one.
        part: ``conditions`` or ``models``.
        names: Names of the new ones.
        remedy: Advice for the message.

    Raises:
        InputError: The log has others, or cannot be read.
    """
    if not log.exists():
        return
    try:
        earlier = json.loads(log.read_text(encoding="utf-8"))["settings"][part]
        titles = (
            {one["name"]: one["title"] for one in earlier} if part == "conditions" else {one: one for one in earlier}
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{log} is no log of attacks, or broken; remove it.") from error
    if lost := [title for name, title in titles.items() if name not in names]:
        raise InputError(f"{log} has {part} that would be lost: {', '.join(lost)}. {remedy}, or remove the file.")


def measure(attack: Attack, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, Measured]:
    """Measure a policy under a condition; see `Attack.measure`.

    Raises:
        InputError: A user's attack returns something other than the rows of the condition.
    """
    found, curve = attack.measure(policy, subject, condition), condition.kind == "curve"
    if isinstance(found, Mapping):
        names = curve_steps(list(found)) if curve else found
        if list(names) == [condition.name] and all("index" in row for rows in found.values() for row in rows):
            return found
    raise InputError(
        f"measure() of the attack {attack.name} must return a dictionary with the rows of "
        f"{f'{condition.name}_step0, ...' if curve else condition.name}, each with its index (see measure_answers)."
    )


@dataclass(frozen=True)
class Parts:
    """Store of partial results, from which a killed attack is resumed.

    Attributes:
        folder: Folder with a file per finished condition, and per measurement of an unfinished one.
        model: Name of the attacked model.
        key: Hash of everything that changes a result.
    """

    folder: Path
    model: str
    key: str

    def take(self, name: str) -> dict[str, Measured] | None:
        """Return the rows stored under a name; None if there are none.

        Raises:
            InputError: They belong to an attack with other options, data or weights.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is broken JSON ({error}); remove it to measure it again.") from error
        if content.get("key") != self.key:
            raise InputError(
                f"{self.folder.parent} holds the results of attacks with other options, data or weights; give another "
                "output, or remove it."
            )
        rows: dict[str, Measured] = content["rows"]
        return rows

    def keep(self, name: str, measure: Callable[[], Measured]) -> Measured:
        """Return the stored rows of a measurement, or else measure and store them."""
        rows = self.take(name) or self._write(name, {name: measure()})
        return rows[name]

    def finish(self, name: str, rows: dict[str, Measured]) -> dict[str, Measured]:
        """Store all rows of a condition in one file, and delete those of its single measurements."""
        rows = self._write(name, rows)
        for one in rows:
            if one != name:
                self._path(one).unlink(missing_ok=True)
        return rows

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.model}_{name}.json"

    def _write(self, name: str, rows: dict[str, Measured]) -> dict[str, Measured]:
        write_json(self._path(name), {"key": self.key, "rows": rows})
        found: dict[str, Measured] = finite(rows)
        return found
