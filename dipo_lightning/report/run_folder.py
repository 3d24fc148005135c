"""Results of a run, read from its folder: evaluations, configuration, curves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError

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
    """Read a run.

    Args:
        folder: The run's log folder, which holds ``evaluations``; or a folder with exactly one such folder below it.

    Raises:
        InputError: There is no such folder, no evaluation in it, or several runs; or a file is broken.
    """
    path = _find(Path(folder).expanduser())
    run = RunFolder(path, read_documents(path))
    for name in ("config.yaml", "hparams.yaml"):
        if run.config is None and (path / name).is_file():
            run.config = (path / name).read_text(encoding="utf-8", errors="replace").strip() or None
    run.curves = _curves(path)
    return run


def read_documents(folder: Path, name: str | None = None) -> dict[str, list[Document]]:
    """Read the evaluations of a run's folder, by name and in the order of their steps; those of one name, or all."""
    found: dict[str, list[Document]] = {}
    for file in sorted((folder / "evaluations").glob(f"{name}_epoch=*.json" if name else "*.json")):
        found.setdefault(file.name.split("_epoch=")[0], []).append(read_document(file))
    for documents in found.values():
        documents.sort(key=lambda document: document["provenance"].get("step", 0))
    return found


def read_document(file: Path) -> Document:
    """Read one evaluation.

    Raises:
        InputError: It is no evaluation of this package.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not an evaluation (broken JSON: {error}); remove it or evaluate again.") from error
    if not isinstance(document, dict) or not {"aggregates", "sets", "provenance"} <= set(document):
        raise InputError(f"{file}: not an evaluation of this package; remove it from the folder.")
    return document


def _find(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give a run's folder, the one it printed at its end.")
    if any((folder / "evaluations").glob("*.json")):
        return folder
    runs = sorted({path.parent.parent for path in folder.rglob("evaluations/*.json")})
    if len(runs) == 1:
        return runs[0]
    if runs:
        raise InputError(f"{folder} holds {len(runs)} runs; give one of them: {', '.join(map(str, runs[:6]))}.")
    raise InputError(
        f"{folder}: no evaluations/*.json in it. Run with an evaluation callback in trainer.callbacks, or give another "
        "folder."
    )


def _curves(folder: Path) -> dict[str, Curve]:
    """Scalars that training logged, from TensorBoard's event files."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: MOST_POINTS}).Reload()
    tags = sorted(tag for tag in events.Tags()[SCALARS] if tag.startswith("train/"))
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}
