"""Self-contained HTML pages: of a run (settings, numbers in plain words, curves, answers), and of a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.evaluation.aggregates import (
    Meanings,
    document_meanings,
    flat_numbers,
    interval_text,
    retain_numbers,
)
from dipo_lightning.evaluation.benchmark import Benchmark, benchmark_of
from dipo_lightning.evaluation.logs import read_log
from dipo_lightning.evaluation.rows import EvaluationLog
from dipo_lightning.evaluation.run_folder import write_text
from dipo_lightning.metrics.base import INTERVAL, Meaning
from dipo_lightning.report.charts import evaluation_charts, training_charts
from dipo_lightning.report.runs import Document, RunFolder, of_one_model, read_run
from dipo_lightning.safety.display import visible, word_changes
from dipo_lightning.safety.paths import expanded, with_home
from dipo_lightning.safety.redaction import without_home, without_secrets, without_secrets_in_yaml

PAGE = "results.html"
ROWS = 100
HEADLINES = 6
"""Maximum number of a benchmark's numbers shown at the top."""
NOTABLE = 0.05
"""Relative change of a number up to which it is marked neither good nor bad."""


def report(run_folder: str, output: str | None = None, rows: int = ROWS) -> None:
    """Write a run's results as one HTML page that needs no network.

    Args:
        run_folder: Log folder of a run with an evaluation callback (``fit`` prints it at its end).
        output: The file to write; by default ``results.html`` in that folder.
        rows: Maximum number of rows of each set whose answers are shown.
    """
    path = None if output is None else expanded(output, "output")
    print(f"The results page is {write_page(run_folder, path, rows)}")


def write_page(run_folder: str | Path, output: str | Path | None = None, rows: int = ROWS) -> Path:
    """Write the page and return its path; see `report`."""
    check_numbers("", {"rows": rows}, least=0)
    run = read_run(run_folder)
    path = Path(output) if output is not None else run.path / PAGE
    write_text(path, render(run, rows))
    return path


def fill(template: str, **texts: Any) -> str:
    """Render a template of this folder as HTML; every text is escaped, and the page cannot run scripts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dipo_lightning.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**texts)


def render(run: RunFolder, rows: int = ROWS) -> str:
    """Return the page of a run as HTML."""
    last = next(iter(run.evaluations.values()))[-1]
    return fill(
        "page.html.jinja",
        name=visible("/".join(run.path.resolve().parts[-2:])),
        about=_about(last["provenance"]),
        origin=_origin(last["provenance"]),
        evaluations=[_evaluation(name, documents, rows) for name, documents in run.evaluations.items()],
        training=training_charts(run.curves),
        config=None if run.config is None else visible(_configuration(run.config), 100_000),
    )


def _configuration(text: str) -> str:
    """Return a run's configuration without secrets and without empty options."""
    text = without_secrets_in_yaml(without_home(text))
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return yaml.safe_dump(_given(config), sort_keys=False, allow_unicode=True) if isinstance(config, dict) else text


def _given(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _given(value) for key, value in part.items() if value is not None}
    return [_given(item) for item in part] if isinstance(part, list) else part


def _evaluation(name: str, documents: Sequence[Document], most: int) -> dict[str, Any]:
    """Return the texts of one evaluation's part of the page."""
    documents = of_one_model(documents)
    scalars = [flat_numbers(document["aggregates"]) for document in documents]
    first, last = documents[0], documents[-1]
    benchmark, meanings = benchmark_of(last), document_meanings(last)
    log = _retain_log(last, benchmark)
    retain = retain_numbers(benchmark, log, last["settings"]) if benchmark and log else {}
    before = scalars[0] if len(documents) > 1 else {}
    sets = benchmark.sets_of(last.get("settings", {})) if benchmark else ()
    ends = {key: interval_text(both) for key, both in (last.get("intervals") or {}).items()}
    drawn = last.get("bootstrap", {}).get("resamples")
    lines = []
    for key, now in scalars[-1].items():
        meaning = meanings[key]
        about = next((one.about for one in sets if one.about and meaning.words.startswith(f"On {one.about}. ")), "")
        line = _line(key, meaning, about, before.get(key), now, retain.get(key))
        lines.append(line | {"interval": ends.get(key, "")})
    further = [line for line in lines if line["key"] in (last.get("settings", {}).get("metrics") or {})]
    shown = _headlines(benchmark, meanings) if benchmark else []
    return {
        "title": visible(benchmark.title if benchmark else name),
        "steps": [document["provenance"].get("step") for document in (first, last)],
        "compared": len(documents) > 1,
        "retain": bool(retain),
        "headlines": [line for key in shown for line in lines if line["key"] == key] + further,
        "lines": lines,
        "intervals": f"{INTERVAL:.0%} interval over {drawn} resamples of its rows (bootstrap)" if ends else "",
        "absent": _absent(last["aggregates"], meanings),
        "charts": evaluation_charts(documents, scalars, benchmark, retain),
        "sets": _sets(first, last, most, {one.name: one.title for one in sets}, len(documents) > 1, log),
        "settings": {
            visible(key): visible(str(value)) for key, value in without_secrets(last.get("settings", {})).items()
        },
        "skipped": {visible(key): len(rows) for key, rows in (last.get("skipped") or {}).items()},
    }


def _headlines(benchmark: Benchmark, meanings: Meanings) -> list[str]:
    """Return the names of the numbers at the top: no logarithms, and the utility even if the list is cut."""
    shown = [key for key in benchmark.shown if meanings[key].unit != "log10"]
    utility = benchmark.headline.utility
    if utility in shown[HEADLINES:]:
        shown.insert(HEADLINES - 1, utility)
    return shown[:HEADLINES]


def _retain_log(document: Document, benchmark: Benchmark | None) -> EvaluationLog | None:
    """Return the retain model's log that an evaluation was compared with, if the file still exists."""
    path = document.get("settings", {}).get("retain_log")
    if not isinstance(path, str) or not with_home(path).exists():
        return None
    try:
        return read_log(path, benchmark=benchmark)
    except InputError:  # another file stands there now
        return None


def _line(
    key: str, meaning: Meaning, about: str, before: float | None, now: float, retain: float | None
) -> dict[str, Any]:
    """Return a line of the table: the number before, now and of the retain model, and a mark on a notable change."""
    label, words = meaning.label, meaning.words
    if about:
        label, words = f"{label.partition(': ')[2] or label} on {about}", words.removeprefix(f"On {about}. ")
    given = [value for value in (before, now, retain) if value is not None]
    change = None if before is None else now - before
    return {
        "key": visible(key),
        "label": visible(label + meaning.unit_behind),
        "words": visible(words),
        "wanted": meaning.goal,
        "before": None if before is None else alike(before, given),
        "now": alike(now, given),
        "retain": None if retain is None else alike(retain, given),
        "change": "" if change is None else alike(change, given, sign="+"),
        "direction": _direction(meaning, before, now, retain),
    }


def alike(value: float, among: Sequence[float], sign: str = "") -> str:
    """Format a number with as many decimals as its neighbours; a very small one in scientific notation."""
    if not math.isfinite(value):
        return str(value)
    if all(number.is_integer() for number in among) and max(map(abs, among)) > 1:
        return f"{value:{sign}.0f}"
    largest = max((abs(number) for number in among if math.isfinite(number)), default=0.0)
    decimals = 3 if largest < 10 else 2 if largest < 100 else 1
    return f"{value:{sign}.1e}" if 0 < abs(value) < 0.5 * 10**-decimals else f"{value:{sign}.{decimals}f}"


def _direction(meaning: Meaning, before: float | None, now: float, retain: float | None) -> str:
    """Return ``good`` or ``bad`` for a notable change; else an empty text.

    The goal of some numbers is the level of a model that never knew the rows: without its number no change is good.
    """
    if before is None or not abs(now - before) > NOTABLE * max(abs(now), abs(before)):
        return ""
    better = meaning.better(now, before)
    if meaning.floor:
        nearer = better if retain is None else abs(now - retain) < abs(before - retain)
        return "bad" if not nearer else "" if retain is None else "good"
    return {True: "good", False: "bad", None: ""}[better]


def _absent(aggregates: Mapping[str, Any], meanings: Meanings) -> dict[str, str]:
    """Return the numbers that could not be computed, with the reasons."""
    ending = "_absent"
    return {
        visible(meanings[key.removesuffix(ending)].label): visible(str(reason))
        for key, reason in aggregates.items()
        if key.endswith(ending)
    }


def _sets(
    first: Document,
    last: Document,
    most: int,
    titles: Mapping[str, str],
    compared: bool,
    log: EvaluationLog | None,
) -> list[dict[str, Any]]:
    """Return the answers of every set that has any: before, after, and the retain model's."""
    found = []
    for name, rows in last["sets"].items():
        said = [row for row in rows if isinstance(row.get("generation"), str)]
        if not said:
            continue
        old = {row["index"]: row.get("generation") or "" for row in first["sets"].get(name, ())} if compared else {}
        others = {row["index"]: row.get("generation") for row in log.sets.get(name, ())} if log else {}
        shown = [_answers(row, old.get(row["index"]), others.get(row["index"])) for row in said[:most]]
        title = titles.get(name) or visible(name.replace("_", " "))
        changed = sum(row["generation"] != old.get(row["index"]) for row in said) if compared else None
        found.append({"name": name, "title": title, "rows": shown, "total": len(said), "changed": changed})
    return found


def _answers(row: Mapping[str, Any], before: str | None, retain: Any) -> dict[str, Any]:
    """Return a row's question and true answer, the answers before and after with changes marked, the retain model's."""
    after = visible(row["generation"])
    then, now = word_changes(visible(before), after) if before is not None else (None, word_changes(after, after)[1])
    return {
        "index": row["index"],
        "question": visible(str(row.get("question") or row.get("prompt") or "")),
        "answer": visible(str(row.get("answer") or "")),
        "before": then,
        "after": now,
        "retain": visible(retain) if isinstance(retain, str) else None,
        "same": before == row["generation"],
    }


_ABOUT = {"method": "method", "pretrained": "model", "seed": "seed", "epoch": "epochs", "step": "optimiser steps"}
_ORIGIN = {"precision": "precision", "device": "device", "processes": "processes", "strategy": "strategy"}


def _named(provenance: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    return {label: visible(str(provenance[key])) for key, label in labels.items() if provenance.get(key) is not None}


def _about(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts about a run that a reader needs first."""
    rows = {f"{part} rows": str(what["rows"]) for part, what in (provenance.get("data") or {}).items()}
    return _named(provenance, _ABOUT) | rows


def _origin(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings needed to repeat a run."""
    found = _named(provenance, _ORIGIN)
    for part, what in (provenance.get("data") or {}).items():
        found[f"{part} rows, SHA-256"] = visible(what["sha256"])
    versions = provenance.get("versions") or {}
    return found | {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def verdict_page(
    verdict: Mapping[str, Any], facts: Mapping[str, str], answers: Sequence[Mapping[str, str]], keep: float
) -> str:
    """Return the page of a verdict (plain values) as HTML.

    ``answers`` has for each forget row ``question``, ``answer``, and the model's answers ``before`` and ``after``;
    ``facts`` describe the run, and ``keep`` is the share that must be kept.
    """
    return fill(
        "verdict.html.jinja",
        verdict={name: value for name, value in verdict.items() if name not in ("values", "kept")}
        | {"reasons": [visible(reason) for reason in verdict["reasons"]]},
        facts={label: visible(text) for label, text in facts.items()},
        values=[_value(value) for value in verdict["values"]],
        kept=[_kept(one, keep) for one in verdict["kept"]],
        answers=[{name: visible(text) for name, text in row.items()} for row in answers],
    )


def _value(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the table of values."""
    return {
        "value": visible(value["value"]),
        "index": value["index"],
        "before": f"{value['before']:.2g}",
        "after": f"{value['after']:.2g}",
        "floor": "–" if value["floor"] is None else f"{value['floor']:.2g}",
        "said": "yes" if value["greedy"] else "no",
        "reworded": "yes" if value["reworded"] else "no",
        "sampled": f"{value['sampled']} of {value['samples']}",
        "rank": value["rank"] or "–",
        "state": "remains" if value["remains"] else "over-forgotten" if value["over_forgotten"] else "",
        "tone": "bad" if value["remains"] else "beyond" if value["over_forgotten"] else "",
    }


def _kept(one: Mapping[str, Any], keep: float) -> dict[str, Any]:
    """Return a line of the table of kept abilities."""
    known = one["low"] is not None and one["high"] is not None
    return {
        "name": one["label"],
        "rows": one["rows"],
        "before": f"{one['before']:.3g}",
        "after": f"{one['after']:.3g}",
        "share": f"{one['share']:.1%}",
        "interval": f"{one['low']:.1%} to {one['high']:.1%}" if known else "–",
        "tone": "" if one["share"] >= keep else "bad",
    }
