"""Results of a run, read from its folder, and a picture of its two headline numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import document_meanings, flat_numbers
from dipo_lightning.evaluation.benchmark import benchmark_of
from dipo_lightning.evaluation.colours import MODEL
from dipo_lightning.evaluation.logs import evaluations_of_runs, only_run, refuse_without_evaluations
from dipo_lightning.safety.paths import with_home

Document = dict[str, Any]
Curve = list[tuple[int, float]]
MOST_POINTS = 1000


@dataclass
class RunFolder:
    """Contents of a run's folder.

    Attributes:
        path: The folder.
        evaluations: Documents by the evaluation's name (its benchmark's), in the order of their steps.
        config: Text of the configuration; None where none was saved.
        curves: Scalars of training by tag, ``train/forget``; empty where nothing was logged.
    """

    path: Path
    evaluations: dict[str, list[Document]] = field(default_factory=dict)
    config: str | None = None
    curves: dict[str, Curve] = field(default_factory=dict)


def read_run(folder: str | Path) -> RunFolder:
    """Read a run's log folder, which holds ``evaluations``, or the only such folder below it."""
    path = _find(with_home(folder))
    run = RunFolder(path, read_documents(path))
    for name in ("config.yaml", "hparams.yaml"):
        if run.config is None and (path / name).is_file():
            run.config = (path / name).read_text(encoding="utf-8", errors="replace").strip() or None
    run.curves = _curves(path)
    return run


def read_documents(folder: Path, name: str | None = None) -> dict[str, list[Document]]:
    """Read all evaluations of a run's folder, or those called ``name``: by name, in the order of their steps.

    Those that ``validate`` and ``test`` wrote beside a run's own are left out (`evaluations_of_runs`).
    """
    found: dict[str, list[Document]] = {}
    files = (folder / "evaluations").glob(f"{name}_epoch=*.json" if name else "*.json")
    for file in evaluations_of_runs(files):
        found.setdefault(file.name.split("_epoch=")[0], []).append(read_document(file))
    for documents in found.values():
        documents.sort(key=lambda document: document["provenance"].get("step", 0))
    return found


def of_one_model(documents: Sequence[Document]) -> list[Document]:
    """Return the evaluations of the model that was measured last, one a step.

    A folder of several ``test``s may hold those of other models, which are no state of it before.
    """
    last = _measured_model(documents[-1])
    return list({one["provenance"].get("step"): one for one in documents if _measured_model(one) == last}.values())


def _measured_model(document: Document) -> Any:
    made = document["provenance"]
    return (made.get("model") or {}).get("pretrained") or made.get("pretrained")


def read_document(file: Path) -> Document:
    """Read one evaluation."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not an evaluation (broken JSON: {error}); remove it or evaluate again.") from error
    parts = [document.get(part) for part in ("aggregates", "sets", "provenance")] if isinstance(document, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise InputError(f"{file}: not an evaluation of this package; remove it from the folder.")
    if not isinstance(step := document["provenance"].get("step", 0), int):
        raise InputError(f"{file}: provenance.step is {step!r}, not a number; evaluate again or remove it.")
    return document


def _find(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give a run's folder, the one it printed at its end.")
    if (run := only_run(folder)) is not None:
        return run
    refuse_without_evaluations(folder)
    raise InputError(
        f"{folder} holds no evaluations (evaluations/*.json). Run with an evaluation callback in trainer.callbacks, or "
        "give another folder."
    )


def _curves(folder: Path) -> dict[str, Curve]:
    """Return the scalars that training logged, from TensorBoard's event files."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: MOST_POINTS}).Reload()
    tags = sorted(tag for tag in events.Tags()[SCALARS] if tag.startswith("train/"))
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def headline_picture(evaluations: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the benchmark's two headline numbers over the steps of a run, forgetting above utility, and write a PNG.

    ``evaluations`` are the run's parsed JSON files on one benchmark, in any order; an `InputError` if none has either
    number.
    """
    from matplotlib.figure import Figure

    last = max(evaluations, key=lambda document: document.get("provenance", {}).get("step", 0), default={})
    benchmark, meanings = benchmark_of(last), document_meanings(last)
    pair = (benchmark.headline.forget, benchmark.headline.utility) if benchmark else ("", "")
    forgetting, utility = (_curve(evaluations, name) for name in pair)
    if benchmark is None or not (forgetting or utility):
        raise InputError("There is nothing to draw: no evaluation has a headline number of a known benchmark.")
    figure = Figure(figsize=(6.4, 5.2), layout="constrained", dpi=150)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw(upper, forgetting, meanings[pair[0]].label)
    _draw(lower, utility, meanings[pair[1]].label)
    if forgetting and benchmark.headline.mark:
        value, label = benchmark.headline.mark
        upper.axhline(value, color="0.4", linestyle="--", linewidth=1)
        upper.annotate(label, (0, value), (3, -9), ("axes fraction", "data"),
                       textcoords="offset points", ha="left", fontsize=8, color="0.4")  # fmt: skip
    lower.set_ylim(0, 1.2 * max((value for _, value in utility), default=1.0) or 1.0)
    lower.set_xlabel("optimiser step")
    upper.set_title(benchmark.describe(last.get("settings", {}), last.get("sets", {})))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _curve(evaluations: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return the finite values of a number by step (by position in a log without steps)."""
    points = [
        (document.get("provenance", {}).get("step", place), flat_numbers(document.get("aggregates", {})).get(name))
        for place, document in enumerate(evaluations)
    ]
    return sorted((step, value) for step, value in points if value is not None and math.isfinite(value))


def _draw(axes: Any, points: list[tuple[float, float]], label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if points:
        axes.plot(*zip(*points, strict=True), color=MODEL, marker="o", linewidth=2)
        step, value = points[-1]
        axes.annotate(f"{value:.3g}", (step, value), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        axes.margins(x=0.06, y=0.18)
    else:
        axes.text(0.5, 0.5, f"no {label}", transform=axes.transAxes, ha="center", color="0.4")
