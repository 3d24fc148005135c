"""One self-contained HTML page of a run: settings, numbers in plain words, curves, answers before and after."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.aggregates import Meanings, document_meanings, flat_numbers, interval_text
from dipo_lightning.evaluation.benchmark import find_benchmark
from dipo_lightning.metrics.rows import INTERVAL, Meaning
from dipo_lightning.report.charts import charts_of, evaluation_charts, training_charts
from dipo_lightning.report.run_folder import Document, RunFolder, read_run
from dipo_lightning.safety.redaction import without_home, without_secrets, without_secrets_in_yaml
from dipo_lightning.safety.text import visible, word_changes

PAGE = "results.html"
ROWS = 100
HEADLINES = 7
"""Most numbers of a benchmark that stand on top."""


def report(run_folder: str, output: str | None = None, rows: int = ROWS) -> None:
    """Write a run's results as one HTML page that needs no network.

    Args:
        run_folder: Log folder of a run with an evaluation callback (what ``fit`` prints at its end).
        output: The file to write; default is ``results.html`` in that folder.
        rows: Most rows of each set whose answers are shown.
    """
    print(f"The results page is {write_page(run_folder, output, rows)}")


def write_page(run_folder: str | Path, output: str | Path | None = None, rows: int = ROWS) -> Path:
    """Write the page and return its path; see `report`.

    Raises:
        InputError: There is no run, or a file of it is broken.
        RunError: The page can't be written.
    """
    if rows < 0:
        raise InputError(f"rows is {rows}; it must be 0 or more.")
    run = read_run(run_folder)
    path = Path(output) if output is not None else run.path / PAGE
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(render(run, rows), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(f"The results page could not be written to {path}: {error.strerror or error}.") from error
    return path


def fill(template: str, **texts: Any) -> str:
    """Return a template of this folder as HTML; every text in it is escaped, and it can run no script."""
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
        name=visible(_run_name(run.path)),
        provenance=_provenance(last["provenance"]),
        evaluations=[_evaluation(name, documents, rows) for name, documents in run.evaluations.items()],
        training=training_charts(run.curves),
        config=None if run.config is None else visible(without_secrets_in_yaml(without_home(run.config)), 100_000),
    )


def _run_name(path: Path) -> str:
    """The last names of a log folder: ``unlearned/version_0``."""
    return "/".join(path.resolve().parts[-2:])


def _evaluation(name: str, documents: Sequence[Document], most: int) -> dict[str, Any]:
    """One evaluation's part of the page."""
    scalars = [flat_numbers(document["aggregates"]) for document in documents]
    first, last = documents[0], documents[-1]
    benchmark, meanings = find_benchmark(last.get("format", ""), last.get("benchmark", "")), document_meanings(last)
    before = scalars[0] if len(documents) > 1 else {}
    ends = {key: interval_text(both) for key, both in (last.get("intervals") or {}).items()}
    lines = [_line(key, meanings[key], before.get(key), now, ends.get(key, "")) for key, now in scalars[-1].items()]
    further = [key for key in lines if key["key"] in (last.get("settings", {}).get("metrics") or {})]
    shown = benchmark.shown[:HEADLINES] if benchmark else ()
    titles = {one.name: one.title for one in benchmark.sets_of(last.get("settings", {}))} if benchmark else {}
    return {
        "title": visible(benchmark.title if benchmark else name),
        "steps": [document["provenance"].get("step") for document in (first, last)],
        "compared": len(documents) > 1,
        "headlines": [line for key in shown for line in lines if line["key"] == key] + further,
        "lines": lines,
        "intervals": _drawn(last) if ends else "",
        "absent": _absent(last["aggregates"], meanings),
        "charts": evaluation_charts(documents, scalars, charts_of(last, benchmark)),
        "sets": _sets(first, last, most, titles, compared=len(documents) > 1),
        "settings": _flat(without_secrets(last.get("settings", {}))),
        "skipped": {visible(key): len(rows) for key, rows in (last.get("skipped") or {}).items()},
    }


def _drawn(document: Document) -> str:
    """Say what an evaluation's intervals are."""
    resamples = document.get("bootstrap", {}).get("resamples")
    return f"{INTERVAL:.0%} interval over {resamples} drawings of its rows (bootstrap)"


def _line(key: str, meaning: Meaning, before: float | None, now: float, interval: str) -> dict[str, Any]:
    """A line of the table: before, now with its interval, and whether the change is the wanted one."""
    direction = ""
    if before is not None and f"{before:.3g}" != f"{now:.3g}":
        direction = {True: "good", False: "bad", None: ""}[meaning.better(now, before)]
    return {
        "key": visible(key),
        "label": visible(meaning.label + (f" ({meaning.unit})" if meaning.unit else "")),
        "words": visible(meaning.words),
        "wanted": meaning.wanted,
        "before": None if before is None else f"{before:.3g}",
        "now": f"{now:.3g}",
        "interval": interval,
        "change": "" if before is None else f"{now - before:+.3g}",
        "direction": direction,
    }


def _absent(aggregates: Mapping[str, Any], meanings: Meanings) -> dict[str, str]:
    """Return what could not be computed, and why."""
    ending = "_absent"
    return {
        visible(meanings[key.removesuffix(ending)].label): visible(str(reason))
        for key, reason in aggregates.items()
        if key.endswith(ending)
    }


def _sets(
    first: Document, last: Document, most: int, titles: Mapping[str, str], compared: bool
) -> list[dict[str, Any]]:
    """The answers of every set that has any, before and after."""
    found = []
    for name, rows in last["sets"].items():
        said = [row for row in rows if isinstance(row.get("generation"), str)]
        if not said:
            continue
        old = {row["index"]: row.get("generation") or "" for row in first["sets"].get(name, ())} if compared else {}
        shown = [_answers(row, old.get(row["index"])) for row in said[:most]]
        title = titles.get(name) or visible(name.replace("_", " "))
        changed = sum(row["generation"] != old.get(row["index"]) for row in said) if compared else None
        found.append({"name": name, "title": title, "rows": shown, "total": len(said), "changed": changed})
    return found


def _answers(row: Mapping[str, Any], before: str | None) -> dict[str, Any]:
    """One row: question, truth, and the two answers in pieces that tell what changed."""
    after = visible(row["generation"])
    then, now = word_changes(visible(before), after) if before is not None else (None, word_changes(after, after)[1])
    return {
        "index": row["index"],
        "question": visible(str(row.get("question") or row.get("prompt") or "")),
        "answer": visible(str(row.get("answer") or "")),
        "before": then,
        "after": now,
        "same": before == row["generation"],
        "rouge": row.get("rouge_l_recall", row.get("rouge")),
    }


def _provenance(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the run's settings for the head of the page."""
    known = {
        "method": "method", "pretrained": "model", "seed": "seed", "precision": "precision", "device": "device",
        "processes": "processes", "strategy": "strategy", "epoch": "epochs", "step": "optimiser steps",
    }  # fmt: skip
    found = {label: visible(str(provenance[key])) for key, label in known.items() if provenance.get(key) is not None}
    for part, what in (provenance.get("data") or {}).items():
        found[f"{part} rows"] = f"{what['rows']}, SHA-256 {what['sha256'][:16]}…"
    versions = provenance.get("versions") or {}
    return found | {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    return {visible(key): visible(str(value)) for key, value in settings.items()}
