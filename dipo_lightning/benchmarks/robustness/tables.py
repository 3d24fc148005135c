"""Table of every condition on every model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dipo_lightning.safety.display import table_in_markdown

PARTS = ("probability", "rouge", "extraction_strength")
"""Default metrics of the answers."""


def short_name(metric: str) -> str:
    """Return the name of a metric in logs; for a class path it is the name of the class in lower case."""
    return metric.rpartition(".")[2].lower()


def number_names(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics of an evaluation."""
    return [short_name(metric) for metric in settings.get("numbers", PARTS)]


def table_lines(document: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each line of the table: a condition's title or a score R or Q, with a cell per model."""
    numbers, settings = document["aggregates"], document["settings"]
    models, parts = settings["models"], number_names(settings)
    for condition in settings["conditions"]:
        name, title, kind = (condition[key] for key in ("name", "title", "kind"))
        if kind == "samples":
            for k in condition["k"]:
                yield f"leak@{k} of {title}", [_cell(numbers, f"{model}_{name}_leak_at_{k}") for model in models]
            continue
        measured = {name: title}
        if kind == "curve":
            measured = {f"{name}_step{step}": f"{title}, step {step}" for step in condition["steps"]}
        for one, label in measured.items():
            yield label, [_cell(numbers, *(f"{model}_{one}_{part}" for part in parts)) for model in models]
        letter = {"curve": "R", "rounded": "Q"}.get(kind)
        scores = [f"{name}_{letter}_{part}".lower() for part in parts] if letter else []
        if any(score in numbers for score in scores):
            yield f"{letter} of {title}", [_cell(numbers, *scores), *[""] * (len(models) - 1)]


def _cell(numbers: Mapping[str, Any], *names: str) -> str:
    return " / ".join("-" if numbers.get(name) is None else f"{numbers[name]:.3f}" for name in names)


def markdown_table(document: Mapping[str, Any]) -> str:
    """Return the table in Markdown, with a line for each set of which rows were left out."""
    models = document["settings"]["models"]
    numbers = " / ".join(name.replace("_", " ") for name in number_names(document["settings"]))
    table = table_in_markdown(["attack", *models], ([title, *cells] for title, cells in table_lines(document)))
    skipped = "".join(
        f"\n\n{len(rows)} rows of {name} have no value and were left out: {rows[0]['reason']}"
        for name, rows in (document.get("skipped") or {}).items()
    )
    return (
        f"{numbers.capitalize()} of the forget rows (rouge: ROUGE-L recall); leak@k is the chance that one of k "
        f"sampled answers leaks.\n\n{table}{skipped}"
    )
