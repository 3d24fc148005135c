"""Execution of a comparison: try the grids on the selection seed, choose, run the reported settings, collect."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dipo_lightning.callbacks.checkpoint import newest
from dipo_lightning.callbacks.run_record import (
    CHECKPOINTS,
    PATIENCE,
    FolderLock,
    model_files,
    other_logs,
    read_record,
    retain_logs,
)
from dipo_lightning.cli import child
from dipo_lightning.cli.forget import SCORES
from dipo_lightning.cli.run_folder import LOG, is_finished, read_fingerprints
from dipo_lightning.comparison.configs import (
    Config,
    callback_class,
    callbacks,
    data_module,
    parsed,
    read_base,
    run_config,
    usual_options,
)
from dipo_lightning.comparison.plan import Comparison, FinishedRun, Method, Settings
from dipo_lightning.comparison.report import Failure, Findings
from dipo_lightning.comparison.results import (
    Candidate,
    Choice,
    Row,
    Scale,
    add_columns_beside,
    add_utility_kept,
    by_moment,
    choose,
    evaluation_rows,
    read_evaluations,
    retain_row,
    target_row,
)
from dipo_lightning.errors import DiPOError, InputError, RunError
from dipo_lightning.evaluation.benchmark import Benchmark, import_class
from dipo_lightning.evaluation.run_folder import move_aside
from dipo_lightning.models.export import PARTIAL
from dipo_lightning.safety.paths import is_model

State = Literal["finished", "interrupted", "new"]


@dataclass(frozen=True)
class Run:
    """Run of one method with one choice of settings (in words) and one seed.

    ``config`` is the config for ``fit``; ``changes_data`` is True if the settings include options of the data module.
    """

    method: str
    settings: str
    seed: int
    folder: Path
    config: Config
    changes_data: bool = False

    @property
    def title(self) -> str:
        """Title of the run, in a line."""
        return " ".join(filter(None, [self.method, f"({self.settings})" if self.settings else "", f"seed {self.seed}"]))

    @property
    def state(self) -> State:
        """State of the run: ``finished``, ``interrupted`` (it can be resumed), or ``new``.

        A folder with a run of another config or of changed data counts as new.
        """
        if not child.was_begun_with(self.config, self.folder) or self._outdated():
            return "new"
        if is_finished(self.folder):
            return "finished"
        return "interrupted" if newest(self.folder / CHECKPOINTS) else "new"

    def _outdated(self) -> bool:
        """Return whether the folder's run used other rows, another model or retain log that had the same names."""
        record = read_record(self.folder / CHECKPOINTS)
        if record is None:
            return False
        pretrained = self.config["model"]["init_args"].get("pretrained")
        rows = rows_now(json.dumps([self.config["data"], pretrained], sort_keys=True))
        if other_logs(record, retain_logs(self.config)):
            return True
        return record.get("data") != rows or record.get("model") not in (None, model_files(pretrained))


@functools.cache
def rows_now(section: str) -> dict[str, Any]:
    """Return the fingerprints of the rows of a config, given its data section and model name as JSON."""
    data, pretrained = json.loads(section)
    return read_fingerprints(data_module(json.dumps(data)), pretrained)


def execute(run: Run, keep_checkpoints: bool = False, lock: FolderLock | None = None) -> Failure | None:
    """Run or resume ``run`` to its end; returns the reason if it failed, else None."""
    state = run.state
    if state == "finished":
        return None
    if state == "new":
        make_room(run)
    try:
        child.fit(run.config, run.folder, lock, quiet=True)
    except RunError as error:
        return Failure(run.title, str(error), run.folder / LOG)
    if not keep_checkpoints:
        for path in (run.folder / CHECKPOINTS).glob("*.ckpt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def make_room(run: Run) -> None:
    """Clear the folder of ``run``: delete an attempt that has no checkpoint; move any other run aside.

    A run that was cleaned has no checkpoint either, but a model or numbers.
    """
    begun = child.was_begun_with(run.config, run.folder)
    models = {path.parent for path in run.folder.rglob("*.safetensors") if not path.parent.name.endswith(PARTIAL)}
    cleaned = not (run.folder / CHECKPOINTS).exists() and ((run.folder / SCORES).exists() or any(map(is_model, models)))
    if begun and not cleaned and not is_finished(run.folder) and not newest(run.folder / CHECKPOINTS):
        shutil.rmtree(run.folder)
    if run.folder.exists():
        move_aside(run.folder)


NAMES_OF_ROWS = {"data", "split", "forget", "train"}
"""Options of the data modules that determine the rows: with equal values, two runs are on the same data."""


class Work:
    """Runs of a comparison, done one after the other.

    Raises:
        InputError: A base cannot be read, a run has a class or an option that `fit` refuses, or settings would be
            chosen on the data that is reported on.
    """

    def __init__(self, plan: Comparison) -> None:
        self.plan, self.lock = plan, FolderLock()
        self.sources: dict[int | None, tuple[str, dict[str, Any]]] = {}
        self.bases = {seed: read_base(plan.base, seed) for seed in plan.seeds} if plan.methods else {}
        benchmarks = [evaluated_on(base, plan.base, plan.evaluation) for base in self.bases.values()]
        benchmarks += [read_evaluations(Path(run.path), plan.evaluation)[0] for run in plan.runs]
        self.findings = Findings(Scale.of(benchmarks[0]))
        if others := {one.title for one in benchmarks} - {benchmarks[0].title}:
            raise InputError(f"Runs on {benchmarks[0].title} cannot be compared with runs on {', '.join(others)}.")
        self.selected = [method for method in plan.methods if plan.selects(method)]
        self.selection_base: Config = {}
        if self.selected:
            assert plan.selection.seed is not None
            self.selection_base = read_base(plan.selection.base or plan.base, plan.selection.seed)
            self._refuse_same_data()
        self._refuse_what_fit_refuses()

    def planned(self) -> list[str]:
        """Return the planned runs, one line each."""
        lines = []
        for method in self.plan.methods:
            if method in self.selected:
                tries = [self.selection_run(method, settings) for settings in method.candidates()]
                lines += [f"{run.state:<12}{run.title}, to choose by" for run in tries]
                lines.append(f"{'then':<12}{method.name}, as chosen, seeds {', '.join(map(str, self.plan.seeds))}")
            else:
                runs = [self.reported_run(method, method.candidates()[0], seed) for seed in self.plan.seeds]
                lines += [f"{run.state:<12}{run.title}" for run in runs]
        return [*lines, *(f"{'given':<12}{run.path}" for run in self.plan.runs)]

    def do(self) -> Findings:
        """Run what is missing, and return all results."""
        self.lock.hold(Path(self.plan.output), patience=PATIENCE)
        given = [self.given_rows(run) for run in self.plan.runs]  # a wrong path is reported before anything runs
        self._refuse_one_line_for_two(given)
        for method in self.plan.methods:
            try:
                choice = self.choice(method)
            except RunError as error:
                self.findings.failures.append(Failure(method.name, str(error)))
                continue
            self.findings.choices[method.name] = choice
            key = method.name, label(choice.settings)
            self.findings.moments[key] = choice.moment
            for seed in self.plan.seeds:
                rows = self.measured(self.reported_run(method, choice.settings, seed))
                if rows:
                    self.findings.runs.setdefault(key, []).append(rows)
        for rows in given:
            self.findings.runs.setdefault((rows[0]["method"], rows[0]["settings"]), []).append(rows)
        targets = {row["seed"]: row for row in self.findings.targets}
        self.findings.retain = [
            row
            for seed, base in self.bases.items()
            if (row := retain_row(base, seed, targets.get(seed), self.findings.scale))
        ]
        return self.findings

    def choice(self, method: Method) -> Choice:
        """Return the reported settings of ``method``: its own, or those selected on the selection seed."""
        settings = method.candidates()
        if method not in self.selected:
            return Choice(settings[0])
        tried = []
        for candidate in settings:
            if rows := self.measured(self.selection_run(method, candidate)):
                tried.append(Candidate(method.name, candidate, label(candidate), rows))
        self.findings.candidates += tried
        return choose(tried, self.plan.selection, self.findings.scale)

    def measured(self, run: Run) -> list[Row] | None:
        """Run ``run`` to its end and return its rows; if it fails, record the failure and return None."""
        print(f"{run.title} ...", end=" ", flush=True)
        found: Failure | list[Row]
        try:
            done = "finished earlier" if run.state == "finished" else "done"
            found = execute(run, self.plan.keep_checkpoints, self.lock) or self.rows_of(run)
        except (DiPOError, OSError) as error:
            found = Failure(run.title, str(error))
        if isinstance(found, Failure):
            print(f"FAILED: {found.reason}", flush=True)
            self.findings.failures.append(found)
            return None
        print(f"{done}: {outcome(found[-1], self.findings.scale)}", flush=True)
        return found

    def given_rows(self, run: FinishedRun) -> list[Row]:
        """Return the rows of a finished run."""
        scale = self.findings.scale
        documents = read_evaluations(Path(run.path), scale.benchmark.name)[1]
        scale.learn(documents[-1])
        rows = evaluation_rows(documents, run.name, run.settings, run.seed)
        add_columns_beside(rows, Path(run.path))
        _refuse_unmeasured(rows, run.path)
        self._refuse_another_base(run.path, rows[0]["seed"], documents[0]["provenance"])
        add_utility_kept(rows, target_row(rows), scale)
        return rows

    def _refuse_one_line_for_two(self, given: list[list[Row]]) -> None:
        """Refuse two runs of the same seed in one line of the table, and an unnamed run in the line of a method."""
        methods = [(method.name, label(settings)) for method in self.plan.methods for settings in method.candidates()]
        taken = {(line, seed) for line in methods for seed in self.plan.seeds}
        for run, rows in zip(self.plan.runs, given, strict=True):
            line, seed = (rows[0]["method"], rows[0]["settings"]), rows[0]["seed"]
            if (line, seed) in taken or (run.name is None and line in methods):
                called = f"{line[0]} ({line[1]})" if line[1] else line[0]
                raise InputError(
                    f"{run.path} would be averaged with another run called {called}, as if they were two seeds of one "
                    "method. Give it a `name` of its own in `runs`."
                )
            taken.add((line, seed))

    def rows_of(self, run: Run) -> list[Row] | Failure:
        """Return the rows of a run that has ended, or the reason why they cannot be read."""
        scale = self.findings.scale
        try:
            documents = read_evaluations(run.folder, scale.benchmark.name)[1]
        except InputError as error:
            return Failure(run.title, str(error))
        if run.folder.is_relative_to(Path(self.plan.output) / "runs") and not run.changes_data:
            self._refuse_another_base(run.title, run.seed, documents[0]["provenance"])
        scale.learn(documents[-1])
        rows = evaluation_rows(documents, run.method, run.settings, run.seed)
        _refuse_unmeasured(rows, run.folder)
        add_columns_beside(rows, run.folder)
        add_utility_kept(rows, target_row(rows), scale)
        return rows

    def _refuse_another_base(self, title: str, seed: int | None, provenance: dict[str, Any]) -> None:
        """Refuse to show runs of one seed together if they started from different weights or forgot different rows."""
        first, other = self.sources.setdefault(seed, (title, provenance))
        models = [(one.get("model") or {}).get("pretrained") for one in (other, provenance)]
        rows = [{part: of["sha256"] for part, of in (one.get("data") or {}).items()} for one in (other, provenance)]
        parts = [part for part in rows[0].keys() & rows[1].keys() if rows[0][part] != rows[1][part]]
        if all(models) and models[0] != models[1]:
            what = "started from other weights"
        elif parts:
            what = f"had other {' and '.join(sorted(parts))} rows"
        else:
            return
        raise InputError(
            f"{title} {what} than {first}, so that one table of seed {seed} would mix them. Remove the folder of the "
            "older one to run it anew, or give another output."
        )

    def reported_run(self, method: Method, settings: Settings, seed: int) -> Run:
        """Return a run whose numbers are reported."""
        return self._run("runs", self.bases[seed], method, settings, seed)

    def selection_run(self, method: Method, settings: Settings) -> Run:
        """Return a run of the selection."""
        assert self.plan.selection.seed is not None
        return self._run("selection", self.selection_base, method, settings, self.plan.selection.seed)

    def _run(self, part: str, base: Config, method: Method, settings: Settings, seed: int) -> Run:
        words = label(settings)
        ordered = label(dict(sorted(settings.items()))) or "default"  # whatever the order in the file
        name = file_name(ordered, ordered.replace(", ", "_"))
        folder = Path(self.plan.output) / part / file_name(method.name) / name / f"seed{seed}"
        config = run_config(base, method, settings, seed, self.plan.export and part == "runs")
        changes_data = any(name.startswith("data.") for name in settings)
        return Run(method.name, words, seed, folder, config, changes_data)

    def _refuse_what_fit_refuses(self) -> None:
        """Refuse every run whose config names an unknown class or option, or has a wrong value."""
        for method in self.plan.methods:
            for settings in method.candidates():
                runs = [self.reported_run(method, settings, seed) for seed in self.plan.seeds]
                if method in self.selected:
                    runs.append(self.selection_run(method, settings))
                for run in runs:
                    for part in ("data", "trainer", "model"):
                        try:
                            parsed(part, json.dumps(run.config[part], default=str))
                        except InputError as error:
                            raise InputError(f"{run.title}: {error}") from error

    def _refuse_same_data(self) -> None:
        """Refuse to choose settings on the reported rows, or note it if ``allow_same_data`` is set."""
        same = [seed for seed, base in self.bases.items() if _data_of(base) == _data_of(self.selection_base)]
        self.findings.same_data = bool(same)
        if same and not self.plan.selection.allow_same_data:
            raise InputError(
                f"Settings would be chosen on the data that seed {same[0]} is reported on. Give the selection a base "
                "with data of its own: `{seed}` in `base`, or selection.base; or accept it with "
                "selection.allow_same_data: true, and the report will say so."
            )


def _refuse_unmeasured(rows: list[Row], folder: str | Path) -> None:
    """Refuse a run that was measured before its first step at most."""
    if not by_moment(rows):
        raise InputError(f"{folder} has no evaluation after a first step, so there is nothing to compare.")


def _data_of(base: Config) -> Config:
    """Return the options that determine the rows of a base; if none is known by name, every option but the seed."""
    options = usual_options(import_class(base["data"]["class_path"])) | base["data"]["init_args"]
    naming = {name: value for name, value in options.items() if name in NAMES_OF_ROWS}
    return naming or {name: value for name, value in options.items() if name != "seed"}


def evaluated_on(base: Config, path: str, name: str | None) -> Benchmark:
    """Return the benchmark that a base's runs are compared on: the one of evaluation ``name``, or of the first."""
    classes = [callback_class(callback["class_path"]) for callback in callbacks(base.get("trainer") or {})]
    kinds = [getattr(kind, "benchmark", None) for kind in classes]
    found = [kind for kind in kinds if isinstance(kind, Benchmark) and not kind.columns_beside]
    for benchmark in found:
        if name in (None, benchmark.name):
            return benchmark
    has = f"it has {', '.join(one.name for one in found)}" if found else "it has none"
    raise InputError(f"The base {path} needs {name or 'an'} evaluation callback in trainer.callbacks; {has}.")


def label(settings: Settings) -> str:
    """Write settings in a line: ``beta=0.02, lr=0.001``."""
    values = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in settings.items())
    return ", ".join(f"{name}={value}" for name, value in values)


def file_name(text: str, plain: str | None = None) -> str:
    """Return a name for a folder: readable, and different for different texts.

    ``plain`` is the text in the form in which it may stand as it is.
    """
    safe = re.sub(r"[^\w.=+-]+", "_", text)[:60]
    return (
        safe
        if safe == (text if plain is None else plain) and safe.strip(".")
        else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    )


def outcome(row: Row, scale: Scale) -> str:
    """Summarise an evaluation in a line."""
    names = {name: "kept" if name == "utility_kept" else scale.label(name) for name in scale.compared}
    return ", ".join(f"{words} {row[name]:.3g}" for name, words in names.items() if row.get(name) is not None)
