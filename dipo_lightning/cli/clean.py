"""The command ``clean``: removal of forget texts, and of weights that know them, from a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.callbacks.run_record import remove
from dipo_lightning.cli.forget import SOURCES
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.run_folder import write_json

SCORES = "scores.json"
"""File with the numbers of the evaluations, which stay; without any row."""

_REASONS = (
    ("evaluations", "every row: questions, true answers, the model's answers"),
    ("examinations", "private values, and the models' answers"),
    ("attacks", "questions, true answers, the models' answers under attack"),
    ("checkpoints", "weights during training, optimiser states, random states"),
    ("reference_cache", "hidden states of the forget rows under the target model"),
    ("data", "rows to forget and to keep"),
    ("media", "tables of answers and pictures of a CSV logger"),
    ("wandb", "tables of answers and pages of a W&B logger"),
    ("mlruns", "tables of answers and pages of an MLflow logger"),
)
_PATTERNS = (
    ("events.out.tfevents.*", "answers as text, and curves"),
    ("*.html", "answers before and after"),
    ("*.ckpt", "weights during training"),
    ("*verdict*.json", "private values"),
    ("*.log", "printed answers"),
    ("log.txt", "printed answers"),
    ("*.jsonl", "rows"),
)


@dataclass(frozen=True)
class Copy:
    """File or folder with data that was to be erased; ``why`` names its contents, ``size`` is in bytes."""

    path: Path
    why: str
    size: int


def clean(run: str, yes: bool = False) -> None:
    """List, and with --yes remove, all copies of forget texts and of the target's weights in a run folder.

    The exported model with its card, the configuration and the numbers of the evaluations (scores.json) stay. Files
    outside the folder are listed but never removed: your data files, and the original model.

    Args:
        run: Folder of a run, as written by ``fit --run`` or ``forget``.
        yes: Remove the copies; without it they are only listed.
    """
    folder = Path(run).expanduser()
    copies = find_copies(folder)
    for copy in copies:
        print(f"{copy.size / 1e6:10.1f} MB  {copy.path.relative_to(folder)}  ({copy.why})")
    if not copies:
        print(f"{folder} holds no copy of the forget rows.")
    elif yes:
        keep_scores(folder)
        for copy in copies:
            remove(copy.path)
        print(f"Removed {len(copies)} copies; the numbers are in {folder / SCORES}.")
    else:
        print(f"{len(copies)} copies; add --yes to remove them. The numbers of the evaluations will stay in {SCORES}.")
    for name, path in outside(folder).items():
        print(f"Outside the run folder, for you to remove: {path} ({name})")


def find_copies(folder: Path) -> list[Copy]:
    """Find files and folders with forget texts or weights of the target, sorted by path.

    The contents of a listed folder are not listed again, and links are not followed.

    Raises:
        InputError: The folder does not exist, or is not a run.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the folder of a run.")
    signs = ("config.yaml", "evaluations", SOURCES, SCORES)
    if not any(any(folder.rglob(sign)) for sign in signs):
        raise InputError(f"{folder} is not a run: it holds neither a config.yaml nor evaluations. Nothing was removed.")
    found: dict[Path, str] = {}
    for name, why in _REASONS:
        found |= {path: why for path in folder.rglob(name) if path.is_dir() and not path.is_symlink()}
    for pattern, why in _PATTERNS:
        found |= {path: why for path in folder.rglob(pattern) if not path.is_symlink()}
    exported = {path.parent for path in folder.rglob("config.json")}
    inside = [path for path in found if any(parent in found or parent in exported for parent in path.parents)]
    return [Copy(path, found[path], _size(path)) for path in sorted(found.keys() - set(inside))]


def keep_scores(folder: Path) -> None:
    """Write the numbers of all evaluations, by file, to one JSON file without rows and texts."""
    kept = folder / SCORES
    scores: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for file in sorted(folder.rglob("evaluations/*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        where = {key: document.get("provenance", {}).get(key) for key in ("epoch", "step")}
        scores[str(file.relative_to(folder))] = where | {"aggregates": document.get("aggregates", {})}
    for file in sorted(folder.rglob("*verdict*.json")):
        verdict = json.loads(file.read_text(encoding="utf-8"))
        values = [{key: number for key, number in one.items() if key != "value"} for one in verdict.get("values", ())]
        numbers = {key: verdict.get(key) for key in ("outcome", "kept", "words", "repeated")}
        scores[str(file.relative_to(folder))] = numbers | {"values": values}
    if scores:
        write_json(folder / SCORES, scores)


def outside(folder: Path) -> dict[str, str]:
    """Return the paths outside the run that its configuration names, by their role."""
    found: dict[str, str] = {}
    for file in sorted(folder.rglob(SOURCES)):
        found |= json.loads(file.read_text(encoding="utf-8"))
    for file in sorted(folder.rglob("config.yaml")):
        config = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        model = (config.get("model") or {}).get("init_args") or {}
        data = (config.get("data") or {}).get("init_args") or {}
        forget = data.get("forget")
        named = {"target model": model.get("pretrained"), "data": data.get("data")}
        named |= {"forget rows": ", ".join(forget) if isinstance(forget, list) else forget}
        named["alternative answers"] = model.get("alternatives_file")
        cache = model.get("reference_cache")
        named["cache of the reference model"] = cache if cache and Path(cache).is_dir() else None
        for name, path in named.items():
            if path and not Path(path).resolve().is_relative_to(folder.resolve()):
                found[name] = str(path)
    return found


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())
