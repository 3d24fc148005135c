"""Jobs of `tools/evidence.py`: one fine-tuning, measurement or unlearning run each, done by worker processes.

A finished job has a ``.json`` beside its folder and is not repeated; a failed one has the reason in ``log.txt``.
"""

from __future__ import annotations

import functools
import gc
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dipo_lightning.comparison.results import Row
from dipo_lightning.comparison.work import file_name, label
from dipo_lightning.evaluation.run_folder import write_json

SPLIT, RETAIN = "forget05", "retain95"
LOG = "log.txt"


@dataclass(frozen=True)
class Setup:
    """Settings that all jobs share.

    Attributes:
        model: The base model of the target and the retain model; ``quickstart`` for the quickstart's tiny ones, of
            which every split has data and models of its own.
        work: Folder of data, models and runs.
        device: ``cpu`` or ``cuda``.
        precision: Precision of the Trainer.
        batch_size: Forget rows per step; there are as many retain rows.
        teaching: Learning rate, epochs and batch size of target and retain model.
        measuring: Options of `Measuring`.
        resamples: Number of resamples of the bootstrap.
    """

    model: str
    work: Path
    device: str = "cpu"
    precision: str = "32-true"
    batch_size: int = 16
    teaching: tuple[float, int, int] = (2e-4, 5, 8)
    measuring: dict[str, Any] = field(default_factory=dict)
    resamples: int = 500

    @property
    def tiny(self) -> bool:
        """True for the quickstart's models."""
        return self.model == "quickstart"

    @property
    def reference(self) -> dict[str, str]:
        """Options of the reference model: live, but cached for a real model on a CPU."""
        if self.tiny or self.device != "cpu":
            return {"reference": "live"}
        return {"reference": "auto", "reference_cache": str(self.work / "reference_cache")}

    def places(self, split: str) -> Places:
        """Return where data and models of a split lie."""
        if self.tiny:
            folder = self.work / "quickstart" / split
            log = folder / "retain.json"
            return Places(folder / "data", "forget10", "retain_training", folder / "models", log, "plain")
        folder, log = self.work / "models" / split, self.work / "runs" / split / "retain"
        return Places(self.work / "data" / split, SPLIT, RETAIN, folder, log, "chat")


class Places(NamedTuple):
    """Data and models of a split: the folder in TOFU's schema, its files, the models' folder, the retain log, style."""

    data: Path
    forget: str
    retain: str
    models: Path
    retain_log: Path
    prompt: str


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        kind: ``target`` or ``retain`` (fine-tuning), ``quickstart`` (the tiny models), ``measure`` (the target before
            unlearning) or ``unlearn``.
        split: ``search``, ``report``, or the quickstart's ``seedN``.
        method: Name of the method in tables.
        class_name: Class of the method's module.
        settings: ``lr``, options of the module, and ``data.NAME`` for those of the data module; dots nest.
        seed: Seed of the run.
        epochs: Number of epochs.
        every: Number of epochs between evaluations; None evaluates at the end only.
    """

    kind: Literal["target", "retain", "quickstart", "measure", "unlearn"]
    split: str
    method: str = ""
    class_name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    epochs: int = 5
    every: int | None = None

    @property
    def name(self) -> str:
        """Path of the run below the folder of runs."""
        if self.kind != "unlearn":
            return f"{self.split}/{self.kind}"
        every = f"-every{self.every}" if self.every else ""
        return (
            f"{self.split}/{file_name(self.method)}/{file_name(label(self.settings) or 'default')}/"
            f"epochs{self.epochs}{every}-seed{self.seed}"
        )


def result_of(job: Job, setup: Setup) -> list[Row] | None:
    """Return the rows of a job that is done."""
    path = setup.work / "runs" / f"{job.name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else None


def do(job: Job, setup: Setup) -> None:
    """Do a job, and write its rows."""
    import lightning.pytorch as pl

    from dipo_lightning.comparison.results import evaluation_rows
    from dipo_lightning.report.runs import read_documents

    began, folder = time.perf_counter(), setup.work / "runs" / job.name
    pl.seed_everything(job.seed)
    if job.kind == "quickstart":
        documents = [make_quickstart(job, setup)]
    else:
        module, data, callbacks = parts(job, setup)
        trainer = trainer_for(job, setup, folder, callbacks)
        if job.kind == "measure":
            trainer.validate(module, datamodule=data, verbose=False)
        else:
            trainer.fit(module, data)
        documents = read_documents(folder).get("tofu", [])
    rows = evaluation_rows(documents, job.method or job.kind, label(job.settings), job.seed)
    write_json(setup.work / "runs" / f"{job.name}.json", {"rows": rows, "seconds": time.perf_counter() - began})


def make_quickstart(job: Job, setup: Setup) -> dict[str, Any]:
    """Make the quickstart's data, retain model and target for a seed; returns the retain model's log."""
    from dipo_lightning import quickstart
    from dipo_lightning.report.runs import read_document

    folder = setup.work / "quickstart" / job.split
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["DIPO_LIGHTNING_STEP"] = "1"
    quickstart.prepare(folder, job.seed)
    quickstart.train(folder, "retain", job.seed)
    shutil.copy(quickstart.measure_retain(folder, job.seed), folder / "retain.json")
    quickstart.train(folder, "target", job.seed)
    return read_document(folder / "retain.json")


def parts(job: Job, setup: Setup) -> tuple[Any, Any, list[Any]]:
    """Return the module, the data module and the callbacks of a job."""
    import torch

    import dipo_lightning
    from dipo_lightning.callbacks import ExportModel

    places = setup.places(job.split)
    if job.kind in ("target", "retain"):
        rate, _, batch_size = setup.teaching
        adamw = functools.partial(torch.optim.AdamW, lr=rate, weight_decay=0.01)
        module: Any = dipo_lightning.FineTuningModule(setup.model, optimizer=adamw)
        train = [RETAIN, SPLIT] if job.kind == "target" else [RETAIN]
        taught: Any = dipo_lightning.TOFUFineTuningDataModule(
            data=str(places.data), train=train, prompt=places.prompt, batch_size=batch_size
        )
        callbacks = [evaluation(job, setup, places)] if job.kind == "retain" else []
        return module, taught, [*callbacks, ExportModel(str(places.models / job.kind), inside_run=False)]
    data: dict[str, Any] = {
        "forget": str(places.data / f"{places.forget}.json"),
        "retain": str(places.data / f"{places.retain}.json"),
        "prompt": places.prompt,
        "batch_size": setup.batch_size,
        "seed": job.seed,
    }
    options: dict[str, Any] = {}
    for name, value in job.settings.items():
        first, _, rest = name.partition(".")
        place, name = (data, rest) if first == "data" else (options, name)
        if "." in name:
            group, _, name = name.partition(".")
            place = place.setdefault(group, {})
        place[name] = value
    adamw = functools.partial(torch.optim.AdamW, lr=options.pop("lr", 1e-5), weight_decay=0.01)
    module = getattr(dipo_lightning, job.class_name or "GradDiffModule")(
        str(places.models / "target"), optimizer=adamw, **setup.reference, **options
    )
    return module, dipo_lightning.UnlearningDataModule(**data), [evaluation(job, setup, places)]


def evaluation(job: Job, setup: Setup, places: Places) -> Any:
    """Return the callback that measures TOFU, at the moments of the job."""
    from dipo_lightning.callbacks import TOFUEvaluation
    from dipo_lightning.evaluation.rows import Measuring
    from dipo_lightning.evaluation.schedule import Schedule

    return TOFUEvaluation(
        split=places.forget,
        data=str(places.data),
        retain_log=None if job.kind == "retain" else str(places.retain_log),
        schedule=Schedule(every_n_epochs=job.every, at_start=False),
        measuring=Measuring(**setup.measuring),
        samples=0,
        bootstrap=setup.resamples if job.every is None else setup.resamples // 5,  # a search needs ties only
    )


def trainer_for(job: Job, setup: Setup, folder: Path, callbacks: list[Any]) -> Any:
    """Return a quiet Trainer that writes into the job's folder."""
    import lightning.pytorch as pl

    from dipo_lightning.evaluation.run_folder import set_run_folder

    trainer = pl.Trainer(
        accelerator="gpu" if setup.device == "cuda" else "cpu",
        devices=1,
        precision=setup.precision,  # type: ignore[arg-type]
        max_epochs=setup.teaching[1] if job.kind in ("target", "retain") else job.epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        default_root_dir=folder,
    )
    set_run_folder(trainer, folder)
    return trainer


def serve(connection: Any, setup: Setup) -> None:
    """Do the jobs that come through a pipe, one after the other; answer each with "" or the reason why it failed."""
    import torch

    import dipo_lightning.callbacks
    import dipo_lightning.comparison.results  # noqa: F401  # imported once, before the first job

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        folder = setup.work / "runs" / job.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with (folder / LOG).open("w", encoding="utf-8") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
            try:
                do(job, setup)
                reason = ""
            except Exception as error:  # any: the other jobs go on, and the reason is reported
                traceback.print_exc()
                reason = f"{type(error).__name__}: {error}"
        gc.collect()
        if setup.device == "cuda":
            torch.cuda.empty_cache()
        connection.send(reason)


class Workers:
    """Processes that share the jobs, until a deadline after which no further job starts.

    Attributes:
        failures: Reasons of failed jobs, by name.
        left_out: Names of the jobs that were not begun for lack of time.
    """

    def __init__(self, setup: Setup, count: int, seconds: float) -> None:
        self.setup, self.began, self.seconds = setup, time.monotonic(), seconds
        self.failures: dict[str, str] = {}
        self.left_out: list[str] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "transformers", "lightning.pytorch", "dipo_lightning.callbacks"])
        self._lines: list[Any] = [None] * count
        self._starting = threading.Lock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def run(self, jobs: Iterable[Job]) -> None:
        """Do the jobs that have no result yet, in their order."""
        once = {job.name: job for job in jobs}
        waiting = deque(job for job in once.values() if result_of(job, self.setup) is None)
        with ThreadPoolExecutor(len(self._lines)) as threads:
            list(threads.map(lambda place: self._work(place, waiting), range(min(len(self._lines), len(waiting)))))

    def _work(self, place: int, waiting: deque[Job]) -> None:
        while waiting:
            try:
                job = waiting.popleft()
            except IndexError:
                return
            if self.elapsed > self.seconds:
                self.left_out.append(job.name)
                continue
            began = self.elapsed
            reason = self._ask(place, job)
            if reason:
                self.failures[job.name] = reason
            print(f"{self.elapsed:6.0f} s  {job.name}: {reason or 'done'} ({self.elapsed - began:.0f} s)", flush=True)

    def _ask(self, place: int, job: Job) -> str:
        """Give a job to the worker at a place; replace the worker if it died."""
        if self._lines[place] is None:
            with self._starting:
                here, there = self._context.Pipe()
                self._context.Process(target=serve, args=(there, self.setup), daemon=True).start()
                there.close()
            self._lines[place] = here
        line = self._lines[place]
        try:
            line.send(job)
            return line.recv()
        except (EOFError, OSError):
            self._lines[place] = None
            return "its process died"
