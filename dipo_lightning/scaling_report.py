"""What a sequence of unlearning runs ends with: a table in three formats, and a picture."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from dipo_lightning.callbacks.files import write_json

COLUMNS = {
    "knowmem_retain": "utility (KnowMem retain)",
    "knowmem_forget": "KnowMem forget",
    "verbmem": "VerbMem forget",
    "privleak": "PrivLeak",
}
DRAWN = ("knowmem_retain", "knowmem_forget", "verbmem")
AXES = {"scalability": ("documents", "documents to forget"), "sustainability": ("step", "requests served")}


def write_report(folder: Path, results: list[dict[str, Any]], kind: str) -> None:
    """Write ``results.json``, ``.csv``, ``.md`` and ``.png``, and print the table.

    Args:
        folder: Where to.
        results: Of each step, in order.
        kind: ``scalability`` or ``sustainability``: what the numbers stand against.
    """
    rows = table_rows(results, kind)
    write_json(folder / "results.json", {"kind": kind, "rows": rows, "steps": results})
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = markdown(rows, kind)
    (folder / "results.md").write_text(table + "\n", encoding="utf-8")
    picture(rows, kind, folder / "results.png")
    print(f"\n{table}\n\nTable, numbers and picture: {folder}/results.md, .csv, .json, .png")


def table_rows(results: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return one row a step, and one of the target before the first where it was measured."""
    key, _ = AXES[kind]
    measured = [(result[key], result["part"], result["after"]) for result in results]
    if results[0]["before"] is not None:
        measured.insert(0, (0, "the target", results[0]["before"]))
    return [{key: at, "part": part, **{name: found.get(name) for name in COLUMNS}} for at, part, found in measured]


def markdown(rows: list[dict[str, Any]], kind: str) -> str:
    """Return the table in Markdown."""
    key, label = AXES[kind]
    lines = [f"| {label} | forgotten | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        cells = ("-" if row[name] is None else f"{row[name]:.2f}" for name in COLUMNS)
        lines.append(f"| {row[key]} | {row['part']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], kind: str, path: Path) -> None:
    """Draw utility, KnowMem and VerbMem against size or number of requests."""
    from matplotlib.figure import Figure

    key, label = AXES[kind]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, marker in zip(DRAWN, "osv", strict=True):
        values = [math.nan if row[name] is None else row[name] for row in rows]
        axes.plot([row[key] for row in rows], values, marker=marker, label=COLUMNS[name])
    axes.set_xlabel(label)
    axes.set_ylabel("ROUGE-L F1")
    axes.set_xticks([row[key] for row in rows])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(f"MUSE: {kind}")
    figure.savefig(path, dpi=150)
