"""MUSE's scalability and sustainability: several unlearning runs in a row, and a report on the resulting models.

Scalability forgets sets of growing size, starting from the target each time. Sustainability serves one request after
another, each starting from the model of the previous one. A step is an ordinary ``fit`` in a folder of its own; a
finished step has a ``results.json`` and is never repeated, an interrupted one resumes from its last checkpoint.

MUSE's questions, continuations and privacy texts are all about the first forget set. A stop rule on them can decide how
long the first step trains, but not a later one: KnowMem of the first set is low already, so each later step would end
after one epoch, forgotten or not. As in MUSE's published scripts, the other steps therefore train for as many epochs as
the first one took.
"""

from __future__ import annotations

import copy
import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_lightning.callbacks.run_record import PATIENCE, FolderLock
from dipo_lightning.cli import child
from dipo_lightning.cli.configs import find_config
from dipo_lightning.cli.run_folder import CONFIG
from dipo_lightning.comparison.configs import Config, callbacks, read_fit_config, without_output_paths
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.logs import evaluations_of_runs
from dipo_lightning.evaluation.run_folder import write_json
from dipo_lightning.safety.display import table_in_markdown
from dipo_lightning.safety.paths import expanded

COLUMNS = {
    "knowmem_retain": "utility (KnowMem retain)",
    "knowmem_forget": "KnowMem forget",
    "verbmem": "VerbMem forget",
    "privleak": "PrivLeak",
}
DRAWN = ("knowmem_retain", "knowmem_forget", "verbmem")
AXES = {"scalability": ("documents", "documents to forget"), "sustainability": ("step", "requests served")}


def write_report(folder: Path, results: list[dict[str, Any]], kind: str) -> None:
    """Write ``results.json``, ``.csv``, ``.md`` and ``.png`` of all steps, and print the table."""
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
    """Return one row per step, and one of the target before the first where it was measured."""
    key, _ = AXES[kind]
    measured = [(result[key], result["part"], result["after"]) for result in results]
    if results[0]["before"] is not None:
        measured.insert(0, (0, "the target", results[0]["before"]))
    return [{key: at, "part": part, **{name: found.get(name) for name in COLUMNS}} for at, part, found in measured]


def markdown(rows: list[dict[str, Any]], kind: str) -> str:
    """Return the table in Markdown."""
    key, label = AXES[kind]
    cells = (["-" if row[name] is None else f"{row[name]:.2f}" for name in COLUMNS] for row in rows)
    lines = ([str(row[key]), row["part"], *numbers] for row, numbers in zip(rows, cells, strict=True))
    return table_in_markdown([label, "forgotten", *COLUMNS.values()], lines)


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


STOP_RULES = ("StopAtThreshold", "EarlyStopping")
ABOUT_THE_FIRST = ("muse/verbmem", "muse/knowmem_forget", "muse/privleak", "muse/forget_", "muse/auc_forget_")
"""Prefixes of the numbers about the first forget set, whatever a step forgets (such as ``muse/privleak_auc``)."""


@dataclass(frozen=True)
class Step:
    """One unlearning run of a sequence.

    Attributes:
        number: Number of the step, from 1.
        part: The rows to forget, as ``configuration/split``.
        folder: Its folder.
        start: The model it starts from; None for the one in the config.
        export: Whether the next step starts from this step's model.
    """

    number: int
    part: str
    folder: Path
    start: Path | None = None
    export: bool = False

    @property
    def results(self) -> Path:
        """File of its numbers, which exists once it is finished."""
        return self.folder / "results.json"

    @property
    def model(self) -> Path:
        """Folder of its model, if it exports one."""
        return self.folder / "model"


def scalability(run: str | None = None, output: str = "runs/scalability", parts: list[str] | None = None) -> None:
    """Unlearn forget sets of growing size, each from the same target, and show the cost.

    Writes ``results.md``, ``.csv``, ``.json`` and ``.png``: utility, KnowMem and VerbMem against the number of
    documents. KnowMem and VerbMem are about the first set, which the larger ones include. A stop rule on them sets the
    epochs of the first step, and the others train for as many. After an interruption, the same command resumes.

    Args:
        run: Config of an ordinary ``fit`` with MUSEDataModule and MUSEEvaluation; its logger is replaced.
        output: Folder of the results, with one folder per step.
        parts: The sets to forget, smallest first; by default MUSE's ``scal/forget_1`` to ``_4``.
    """
    names = [f"scal/forget_{fold}" for fold in (1, 2, 3, 4)] if parts is None else parts
    folder = expanded(output, "output")
    steps = [Step(number, part, folder / f"step_{number}") for number, part in enumerate(names, 1)]
    _sequence(run, folder, steps, "scalability")


def sustainability(run: str | None = None, output: str = "runs/sustainability", parts: list[str] | None = None) -> None:
    """Serve unlearning requests one after the other, each from the previous model, and show the cost.

    Writes ``results.md``, ``.csv``, ``.json`` and ``.png``: utility, KnowMem and VerbMem against the number of
    requests. KnowMem and VerbMem are about the first request: later rows show whether it stays forgotten. A stop rule
    on them sets the epochs of the first step, and the others train for as many. After an interruption, the same command
    resumes.

    Args:
        run: Config of an ordinary ``fit`` with MUSEDataModule and MUSEEvaluation; its logger is replaced.
        output: Folder of the results, with one folder per step and its model.
        parts: The requests in order; by default MUSE's ``sust/forget_1`` to ``_4``.
    """
    names = [f"sust/forget_{fold}" for fold in (1, 2, 3, 4)] if parts is None else parts
    folder = expanded(output, "output")
    steps: list[Step] = []
    for number, part in enumerate(names, 1):
        start = steps[-1].model if steps else None
        steps.append(Step(number, part, folder / f"step_{number}", start, export=True))
    _sequence(run, folder, steps, "sustainability")


def _sequence(run: str | None, folder: Path, steps: list[Step], kind: str) -> None:
    """Run the unfinished steps, then report."""
    if run is None:
        raise InputError("run is not given: name the config of the fit that each step is, such as muse/small.")
    if not steps:
        raise InputError("parts is an empty list; name what to forget, or leave it out for MUSE's four.")
    config = read_config(Path(find_config(run)))
    for step in steps:  # check them all first: nothing runs if one is wrong
        check_earlier(step, step_config(config, step, epochs_taken(steps[0])))
    lock = FolderLock()
    lock.hold(folder, PATIENCE)
    try:
        for step in steps:
            if step.results.is_file():
                print(f"{step.folder}: finished earlier", flush=True)
            else:
                run_step(step, step_config(config, step, epochs_taken(steps[0])), lock)
    finally:
        lock.release()
    write_report(folder, [json.loads(step.results.read_text(encoding="utf-8")) for step in steps], kind)


def read_config(path: Path) -> Config:
    """Read the config of a ``fit`` and make sure that its steps can be measured.

    Raises:
        InputError: The file is missing, is not a YAML mapping, or lacks MUSE's data module or evaluation.
    """
    config = read_fit_config(path)
    if not _is(config["data"], "MUSEDataModule"):
        raise InputError(f"{path}: data.class_path is {config['data']['class_path']!r}, not MUSEDataModule.")
    if not any(_is(callback, "MUSEEvaluation") for callback in callbacks(config.get("trainer") or {})):
        raise InputError(f"{path}: trainer.callbacks has no MUSEEvaluation, so there would be nothing to compare.")
    return config


def epochs_taken(first: Step) -> int | None:
    """Return the number of epochs that the first step trained for, or None if it isn't finished."""
    if not first.results.is_file():
        return None
    return max(1, int(json.loads(first.results.read_text(encoding="utf-8"))["epoch"]))


def step_config(config: Config, step: Step, epochs: int | None = None) -> Config:
    """Return the config of one step: its forget set, its starting model and its output folder.

    ``epochs`` is the number of epochs that the first step took, once it is finished; in later steps it replaces the
    stop rules that watch the first forget set.
    """
    made = copy.deepcopy(config)
    made["data"]["init_args"]["forget"] = step.part
    if step.start is not None:
        made["model"]["init_args"]["pretrained"] = str(step.start)
    trainer = made["trainer"] = without_output_paths(made.get("trainer") or {})
    found = trainer["callbacks"]
    watching = [callback for callback in found if _watches_the_first(callback)]
    if watching and step.number > 1 and epochs is not None:
        found = [callback for callback in found if callback not in watching]
        trainer["max_epochs"] = epochs
    for callback in found:
        if _is(callback, "MUSEEvaluation") and step.number > 1:  # its starting model has been measured
            callback["init_args"].setdefault("schedule", {})["at_start"] = False
    if step.export:
        export = {"folder": str(step.model), "inside_run": False}
        found.append({"class_path": "dipo_lightning.callbacks.ExportModel", "init_args": export})
    trainer["callbacks"] = found
    return made


def check_earlier(step: Step, config: Config) -> None:
    """Raise an `InputError` if the run in the step's folder was begun with another config."""
    path = step.folder / CONFIG
    if path.is_file() and not child.was_begun_with(config, step.folder):
        raise InputError(
            f"{step.folder} was begun with another config ({path}). Give another output, or remove that folder and the "
            "steps after it to run them anew."
        )


def run_step(step: Step, config: Config, lock: FolderLock) -> None:
    """Run or resume one step to its end, and write its results."""
    print(f"\n=== step {step.number}, {step.part}: dipo-lightning fit --run {step.folder}", flush=True)
    child.fit(config, step.folder, lock)
    logs = evaluations_of_runs((step.folder / "evaluations").glob("muse_*.json"))
    if not logs:
        raise RunError(f"{step.folder} has no evaluation of its final model; set schedule.at_end: true in the config.")
    first, last = (json.loads(log.read_text(encoding="utf-8")) for log in (logs[0], logs[-1]))
    results = {
        "step": step.number,
        "part": step.part,
        "documents": documents(config, step.part),
        "epoch": last["provenance"]["epoch"],
        "before": first["aggregates"] if first["provenance"]["step"] == 0 else None,
        "after": last["aggregates"],
        "log": str(logs[-1]),
    }
    write_json(step.results, results)


def documents(config: Config, part: str) -> int:
    """Count the documents of a part of the config's corpus."""
    from dipo_lightning.benchmarks.muse.data import HUB_NAMES, forget_texts

    options = config["data"]["init_args"]
    texts = forget_texts(options.get("data", HUB_NAMES[0]), part)
    return len(texts[: options.get("max_forget_rows")])


def _is(part: Config, name: str) -> bool:
    return str(part.get("class_path", "")).rpartition(".")[2] == name


def _watches_the_first(callback: Config) -> bool:
    """Return whether this callback ends training by a number about the first forget set."""
    monitor = callback["init_args"].get("monitor", "")
    return any(_is(callback, rule) for rule in STOP_RULES) and str(monitor).startswith(ABOUT_THE_FIRST)
