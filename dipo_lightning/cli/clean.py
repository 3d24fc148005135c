"""The command ``clean``: removal of forget texts, and of weights that know them, from a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.benchmarks.robustness.running import CONDITIONS, RESULT
from dipo_lightning.callbacks.run_record import CHECKPOINTS, LOCK, RECORD, FolderLock, is_lock, remove
from dipo_lightning.cli.examining import EXAMINATIONS, VERDICT
from dipo_lightning.cli.forget import ATTACKS, MODEL, OURS, ROWS, SCORES, SOURCES, read_sources
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.run_folder import write_json
from dipo_lightning.models.export import PARTIAL
from dipo_lightning.safety.paths import with_home

CACHE = "hidden states of the forget rows under the target model; runs share them, and make them again when needed"
"""Role of the folder of a run's reference caches."""

_KEPT = ("retain rows", "untaught model")
"""Sources of a run of `forget` that hold nothing to be erased."""
_SIGNS = (
    *(f"{CHECKPOINTS}/{RECORD}", f"{CHECKPOINTS}/{LOCK}", "evaluations/*_epoch=*_step=*.json"),
    *(RESULT, f"{CONDITIONS}/unlearned_*.json"),  # of a model that was attacked
)
_LOGS = ("hparams.yaml", "console.log", "events.out.tfevents.*")
_REASONS = (
    ("evaluations", "every row: questions, true answers, the model's answers"),
    (EXAMINATIONS, "private values, and the models' answers"),
    (ATTACKS, "questions, true answers, the models' answers under attack"),
    ("checkpoints", "weights during training, optimiser states, random states"),
    ("reference_cache", "hidden states of the forget rows under the target model"),
    (ROWS, "rows to forget and to keep"),
    ("media", "tables of answers and pictures of a CSV logger"),
    ("wandb", "tables of answers and pages of a W&B logger"),
    ("mlruns", "tables of answers and pages of an MLflow logger"),
)
_PATTERNS = (
    ("events.out.tfevents.*", "answers as text, and curves"),
    ("*.html", "answers before and after"),
    ("*.ckpt", "weights during training"),
    (VERDICT, "private values"),
    *((name, "questions, true answers, the models' answers under attack") for name in (RESULT, f"{CONDITIONS}/*.json")),
    ("*.log", "printed answers"),
    ("log.txt", "printed answers"),
    ("*.jsonl", "rows"),
    *((f".*.{kind}.[0-9]*", "a file that was cut off in writing") for kind in ("html", "json", "jsonl", "ckpt")),
)


@dataclass(frozen=True)
class Copy:
    """File or folder that still holds data to be erased; ``why`` names its contents, ``size`` is in bytes."""

    path: Path
    why: str
    size: int


def clean(run: str, yes: bool = False) -> None:
    """List, and with --yes remove, all copies of forget texts and of the target's weights in a run folder.

    The exported model with its card, the configuration and the numbers of the evaluations (scores.json) stay. What
    lies outside the run is listed but never removed: your data files, the original model, and the cache of the
    reference model (runs/reference_cache by default), which holds hidden states of the forget rows and serves other
    runs, too. Of a folder of ``forget`` only what the command writes is looked at.

    Args:
        run: Folder of a run, as written by ``fit --run`` or ``forget``, or a folder of several; what lies beside them
            is left alone.
        yes: Remove the copies; without it they are only listed.
    """
    if not run:
        raise InputError("The name of the run folder is empty.")
    folder = with_home(run)
    copies, runs = find_copies(folder)
    for one in runs:
        _check_scores(one)
    unended = [run for run in runs if (run / MODEL).is_dir() and not _has_verdict(run)]
    for copy in copies:
        print(f"{copy.size / 1e6:10.1f} MB  {copy.path.relative_to(folder)}  ({copy.why})")
    if not copies:
        print(f"{folder} holds no copy of the forget rows.")
    elif yes:
        with ExitStack() as locks:
            for place in _locked_places(runs):
                locks.enter_context(FolderLock()).hold(place, advice="nothing was removed. Wait until it has ended.")
            numbers = "".join(f" The numbers are in {one / SCORES}." for one in runs if keep_scores(one))
            for copy in copies:
                remove(copy.path)
        print(f"Removed {len(copies)} copies.{numbers}")
    else:
        print(f"{len(copies)} copies; add --yes to remove them. The numbers of the evaluations will stay in {SCORES}.")
    for one in runs:
        for name, path in outside(one).items():
            print(f"Outside {one}, for you to remove: {path} ({name})")
        if others := _others_in(one):
            print(f"Not written by forget, and so not looked into: {', '.join(map(str, others))}")
        if one in unended:
            print(
                f"The run in {one} had not ended: {one / MODEL} may still know the rows. Remove that folder, or end "
                "the run with the same forget command before it is cleaned."
            )


def _has_verdict(run: Path) -> bool:
    """Return whether a run of `forget` has ended with a verdict, or had before it was cleaned; True of other runs."""
    return not read_sources(run) or (run / VERDICT).exists() or VERDICT in _document(run / SCORES)


def _locked_places(runs: Sequence[Path]) -> list[Path]:
    """Return the folders that runs in progress have locked: of checkpoints, of attacks, and of `forget`."""
    kept = {path.parent for run in runs for name in (CHECKPOINTS, ATTACKS) for path in _files(run, f"{name}/{LOCK}")}
    return sorted(kept | {run for run in runs if read_sources(run) or is_lock(run / LOCK)})


def find_runs(folder: Path) -> list[Path]:
    """Find the runs in a folder, or the folder itself, by files that only runs have.

    A run includes runs inside it; a folder of `forget`, those in what the command writes.
    """
    found: list[Path] = []
    parts: list[Path] = []
    inside = (path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())
    for path in sorted([folder, *inside]):
        if not any(path.is_relative_to(part) for part in parts) and _is_run(path):
            found.append(path)
            parts += _parts(path)
    return found


def _parts(run: Path) -> list[Path]:
    """The folder of a run; of a folder of `forget`, what that command and `attack` write into it."""
    if not read_sources(run):
        return [run]
    cut_off = (path for name in (*OURS, SCORES) for path in run.glob(f".{name}.[0-9]*"))
    return [*(run / name for name in (*OURS, ATTACKS)), *cut_off]


def _others_in(run: Path) -> list[Path]:
    """Return the files and folders in a folder of `forget` that neither that command nor `attack` has written."""
    known = {*_parts(run), run / SCORES, run / LOCK}
    return sorted(path for path in run.iterdir() if path not in known) if read_sources(run) else []


def _files(run: Path, pattern: str) -> Iterator[Path]:
    """Yield the files and folders of a run that match a pattern."""
    parts = _parts(run)
    return (path for path in run.rglob(pattern) if any(path.is_relative_to(part) for part in parts))


def _is_run(folder: Path) -> bool:
    if read_sources(folder) or any(any(folder.glob(sign)) for sign in _SIGNS):
        return True
    return "private" in _options(folder / "config.yaml") and any(any(folder.glob(log)) for log in _LOGS)


def find_copies(folder: Path) -> tuple[list[Copy], list[Path]]:
    """Find files and folders with forget texts or weights of the target, sorted by path, and the runs that have them.

    The contents of a listed folder are not listed again, and links are not followed.

    Raises:
        InputError: The folder does not exist, or is not a run.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: {what}; give the folder of a run.")
    runs = find_runs(folder)
    if not runs and not (folder / SCORES).exists():
        raise InputError(f"{folder} is not a run: it holds no checkpoints, evaluations or logs. Nothing was removed.")
    return [copy for run in runs for copy in _copies_in(run)], runs


def _copies_in(run: Path) -> list[Copy]:
    found: dict[Path, str] = {}
    for name, why in _REASONS:
        found |= {path: why for path in _files(run, name) if path.is_dir() and not path.is_symlink()}
    for pattern, why in _PATTERNS:
        found |= {path: why for path in _files(run, pattern) if not path.is_symlink()}
    exported = {path.parent for path in _files(run, "config.json") if not _is_run(path.parent)}
    cut_off = {path for path in _files(run, f"*{PARTIAL}") if _is_cut_off(path)}
    found |= dict.fromkeys(cut_off, "weights of an export that was cut off")
    of_others = {path for path in found if path.name in (EXAMINATIONS, ROWS) and not read_sources(path.parent)}
    kept = {path for path in found if any(parent in exported for parent in path.parents)} - cut_off | of_others
    whole = found.keys() - kept
    inside = {path for path in whole if any(parent in whole for parent in path.parents)}
    return [Copy(path, found[path], _size(path)) for path in sorted(whole - inside)]


def _is_cut_off(folder: Path) -> bool:
    """Return whether a folder has weights of an export, but no card, which is written last."""
    return any(folder.glob("*.safetensors")) and not (folder / "README.md").exists() and not folder.is_symlink()


def _check_scores(run: Path) -> None:
    """Refuse a file of the user's under the name of the file of numbers.

    Raises:
        InputError: There is one; nothing has been removed.
    """
    path = run / SCORES
    numbers = _document(path)
    ours = all(isinstance(one, dict) and not {"aggregates", "values"}.isdisjoint(one) for one in numbers.values())
    if path.exists() and not (numbers and ours):
        raise InputError(
            f"{path} is no file of clean, which keeps numbers under that name: rename it. Nothing was removed."
        )


def keep_scores(run: Path) -> bool:
    """Write the numbers of all evaluations, by file, to one JSON file without rows and texts; False without any."""
    scores = _document(run / SCORES)
    for file in sorted([*_files(run, "evaluations/*.json"), *_files(run, RESULT)]):
        document = _document(file)
        where = {key: document.get("provenance", {}).get(key) for key in ("epoch", "step")}
        scores[str(file.relative_to(run))] = where | {"aggregates": document.get("aggregates", {})}
    for file in sorted(_files(run, VERDICT)):
        verdict = _document(file)
        values = [{key: number for key, number in one.items() if key != "value"} for one in verdict.get("values", ())]
        public = ("outcome", "ended", "public_reasons", "uncertainty", "not_tested", "settings")
        numbers = ("kept", "words", "repeated", "repeated_before")
        kept = {key: verdict[key] for key in (*public, *numbers) if key in verdict}
        scores[str(file.relative_to(run))] = kept | {"values": values}
    if scores:
        write_json(run / SCORES, scores)
    return bool(scores)


def outside(run: Path) -> dict[str, str]:
    """Return the paths outside the run that its configuration names, by their role."""
    found: dict[str, str] = {}
    for file in sorted(_files(run, SOURCES)):
        found |= {role: path for role, path in read_sources(file.parent).items() if role not in _KEPT}
    for file in sorted(_files(run, "config.yaml")):
        config = _options(file)
        method = config.get("model") or {}
        model = method.get("init_args") or {}
        data = (config.get("data") or {}).get("init_args") or {}
        forget = data.get("forget")
        named = {"target model": model.get("pretrained"), "data": data.get("data")}
        named |= {"forget rows": ", ".join(forget) if isinstance(forget, list) else forget}
        named["alternative answers"] = model.get("alternatives_file")
        named[CACHE] = _cache(run, model.get("reference_cache")) if _may_cache(method) else None
        for name, path in named.items():
            if path and not Path(path).resolve().is_relative_to(run.resolve()):
                found.setdefault(name, str(path))  # a run of forget names its own copy of the rows
    links = (path for name in (*dict(_REASONS), *dict(_PATTERNS)) for path in _files(run, name) if path.is_symlink())
    return found | {f"the target of the link {path.relative_to(run)}": str(path.resolve()) for path in links}


def _may_cache(method: dict[str, Any]) -> bool:
    """Return whether a run of a method, given as in its configuration, may have cached its reference.

    Methods of others are taken to do so, since their classes are not imported.
    """
    import dipo_lightning

    options, path = method.get("init_args") or {}, str(method.get("class_path"))
    if options.get("reference") in ("live", "adapters_off"):
        return False
    package, name = path.partition(".")[0], path.rpartition(".")[2]
    if package not in ("dipo_lightning", name) or name not in dipo_lightning.__all__:
        return True
    module = getattr(dipo_lightning, name)
    uses = getattr(module, "needs_reference", False) or options.get("retain_loss") == "kl"
    return getattr(module, "caches_reference", False) and uses


def _cache(run: Path, named: str | None) -> str | None:
    """Return the folder of the caches, whose name is relative to where the run was started: here, or above the run."""
    if not named:
        return None
    places = [place / with_home(named) for place in (Path(), *run.resolve().parents)]
    return next((str(place) for place in places if place.is_dir()), None)


def _document(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, with a message if the file exists."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        print(f"{path} cannot be read: it has no numbers to keep.")
        return {}
    return found


def _options(path: Path) -> dict[str, Any]:
    """The options in a configuration; empty where there are none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())
