"""Jobs of the processes, and of the test process for comparison: plain arguments in, plain values and arrays out."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from transformers import AutoModelForCausalLM

from dipo_lightning.benchmarks.lm_eval.callback import LMEvalEvaluation
from dipo_lightning.benchmarks.muse.callback import MUSEEvaluation
from dipo_lightning.benchmarks.muse.data import MUSEDataModule
from dipo_lightning.benchmarks.tofu.callback import TOFUEvaluation
from dipo_lightning.benchmarks.user_data.callback import MemorizationEvaluation
from dipo_lightning.callbacks.checkpoint import Checkpoint
from dipo_lightning.callbacks.results import ExportModel
from dipo_lightning.cli.main import main
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.methods.altpo import AltPOModule
from dipo_lightning.methods.dipo.module import DiPOModule
from dipo_lightning.methods.gradient_ascent import CEUModule, GradDiffModule
from dipo_lightning.methods.pdu import PDUModule
from dipo_lightning.methods.preference import NPOModule, SimNPOModule
from dipo_lightning.methods.rmu import RMUModule
from dipo_lightning.methods.undial import UNDIALModule
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers
from dipo_lightning.models.distributed import FSDP2Strategy, full_state_dict, is_sharded
from tests.helpers.nested import nested
from tests.helpers.toys import save_toy


class Gaps(UnlearningModule):
    """Notes, inside each training step, the largest difference between the policy's and the reference's outputs."""

    gaps: dict[int, float]  # the largest of each step

    def reference_answers(self, answers: Answers) -> Answers:
        frozen = super().reference_answers(answers)
        if answers.hidden is None or frozen.hidden is None:
            self.note(answers.logits - frozen.logits)
        else:
            self.note(answers.hidden - frozen.hidden)
        return frozen

    def token_margins(self, forget: Answers) -> Any:
        found = super().token_margins(forget)  # type: ignore[misc]
        self.note(found.margin)
        return found

    def note(self, difference: Tensor) -> None:
        step, gap = self.trainer.global_step, float(difference.detach().abs().max())  # type: ignore[attr-defined]
        self.gaps = getattr(self, "gaps", {})
        self.gaps[step] = max(gap, self.gaps.get(step, 0.0))


class RecordedDiPO(Gaps, DiPOModule):
    pass


class RecordedNPO(Gaps, NPOModule):
    pass


class RecordedRMU(Gaps, RMUModule):
    def losses(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        terms = super().losses(answers)
        self.note(terms["retain"])  # the mean squared distance of the steered layer's states
        return terms


class OwnCounts(Callback):
    """Takes the global counts out of the batch, so that each process averages over its own."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        del batch["denominators"]


class Nudge(Callback):
    """Changes the policy's blocks by a share of their weights, when the reference is there and no step is taken."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                if ".layers." in name:
                    parameter.mul_(1 + self.share)


def recorded(kind: str, data: str) -> tuple[Evaluation, list[dict[str, Any]]]:
    """An evaluation before training and after each step, and the list that gets its rows and aggregates."""
    often: dict[str, Any] = {"every_n_steps": 1, "every_n_epochs": None, "batch_tokens": 200, "bootstrap": 40}
    often["metrics"] = {"words": "tests.helpers.user_project.Words"}
    callback: Evaluation
    if kind == "tofu":
        often |= {"gradnorm": True}
        often["metrics"]["invented"] = "tests.helpers.user_project.Invented"
        callback = TOFUEvaluation("forget10", data, **nested(max_new_tokens=6, generation_rows=5, **often))
    elif kind == "muse":
        words = {"class_path": "tests.helpers.user_project.Words", "init_args": {"sets": ["knowmem_forget"]}}
        often["metrics"] = {"words": words}
        few: dict[str, Any] = {"max_rows": 5, "verbmem_tokens": 6, "knowmem_tokens": 4, "generation_rows": 2}
        callback = MUSEEvaluation(data, baseline=0.5, lowercase=True, **nested(**few, **often))
    elif kind == "lm_eval":
        often = {"every_n_steps": 1, "every_n_epochs": None}
        names = ["toy", "toy_says", "toy_texts"]
        callback = LMEvalEvaluation(names, num_fewshot=1, batch_size=3, include_path=data, **nested(**often))
    else:
        callback = MemorizationEvaluation(
            **nested(max_forget_rows=7, max_retain_rows=5, max_new_tokens=6, generation_rows=3, **often)
        )
    documents: list[dict[str, Any]] = []
    original = callback.evaluate

    def evaluate(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        document = original(trainer, pl_module)
        parts = ("sets", "aggregates", "intervals", "skipped")
        documents.append({key: document[key] for key in parts if key in document})
        return document

    callback.evaluate = evaluate  # type: ignore[method-assign]
    return callback, documents


METHODS: dict[str, type[UnlearningModule]] = {
    "dipo": RecordedDiPO,
    "npo": RecordedNPO,
    "simnpo": SimNPOModule,
    "undial": UNDIALModule,
    "rmu": RecordedRMU,
    "ce_u": CEUModule,
    "pdu": PDUModule,
    "altpo": AltPOModule,
    "grad_diff": GradDiffModule,
}
FORGET_ROWS, RETAIN_ROWS = 16, 24


def write_task(folder: Path, family: str = "llama", **overrides: Any) -> Path:
    """Write a toy model and rows whose answers have from 1 to 40 words, so that no two ranks hold as many tokens."""
    save_toy(folder / "model", family, **overrides)
    for name, count in (("forget", FORGET_ROWS), ("retain", RETAIN_ROWS)):
        rows = [
            {"question": f"Who is {name} {row}?", "answer": " ".join(["It is", *map(str, range(row * row * 7 % 40))])}
            for row in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Record(Callback):
    """Keeps the loss of every micro-batch, the rows it held, and the terms of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rows: list[list[int]] = []
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.rows.append(batch["forget"]["index"].tolist())
        self.terms.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def train(
    task: str,
    method: str = "dipo",
    strategy: str = "auto",
    devices: int = 1,
    batch_size: int = 2,
    accumulate: int = 1,
    clip: float | None = None,
    optimizer: str | None = None,
    epochs: int = 1,
    max_steps: int = -1,
    precision: str = "32-true",
    ckpt_path: str | None = None,
    save: tuple[str, int] | None = None,
    keep: str | None = None,
    sharded_checkpoint: bool = False,
    export: tuple[str, str] | None = None,
    evaluate: tuple[str, str] | None = None,
    measured: bool = True,
    compiler: str | None = None,
    own_counts: bool = False,
    nudge: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train the toy and return what happened and the final weights (on rank 0).

    Args:
        save: Folder and optimiser step of a checkpoint, ``folder/step.ckpt``.
        keep: Folder of the package's own checkpoint, ``folder/last.ckpt``.
        export: Folder of the final model, and ``merged`` or ``separate`` adapters.
        evaluate: The kind of `recorded`, and the folder of its data, to evaluate on before training and after each
            step. For ``muse`` it is also what is trained on.
        measured: Whether the evaluation takes place; the same data is trained on without.
        compiler: The backend that ``compile_blocks`` compiles with; torch's default takes minutes here.
        own_counts: Make the mistake of dividing by what the process's own batch holds.
        nudge: Change the policy's blocks by this share before the first step.
    """
    pl.seed_everything(0, verbose=False)  # the adapters' first values
    chosen = OPTIMIZERS[optimizer or ("sgd_clipped" if clip else "sgd")]
    cache = f"{task}/cache/{devices}"
    module = METHODS[method](f"{task}/model", optimizer=chosen, reference_cache=cache, **options)
    data = make_data(task, batch_size, evaluate[1] if evaluate and evaluate[0] == "muse" else None)
    record = Record()
    callbacks: list[Callback] = [record]
    if own_counts:
        callbacks.append(OwnCounts())
    if nudge is not None:
        callbacks.append(Nudge(nudge))
    if save is not None:
        callbacks.append(ModelCheckpoint(save[0], "{step}", every_n_train_steps=save[1], save_top_k=-1))
    if keep is not None:
        callbacks.append(Checkpoint(folder=keep))
    if export is not None:
        callbacks.append(ExportModel(export[0], export[1], inside_run=False))  # type: ignore[arg-type]
    documents: list[dict[str, Any]] = []
    if evaluate is not None and measured:
        evaluation, documents = recorded(*evaluate)
        callbacks.append(evaluation)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy_of(strategy, sharded_checkpoint),
        precision=precision,
        max_epochs=epochs,
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=save is not None or keep is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        inference_mode=False,
        default_root_dir=task,
    )
    with warnings.catch_warnings(), compiled_by(compiler):
        if ckpt_path is not None:  # what it resumes from is there
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty", UserWarning)
        trainer.fit(module, data, ckpt_path=ckpt_path)
    return {
        "losses": record.losses,
        "rows": record.rows,
        "terms": record.terms,
        "weights": weights(module),
        "reference": type(module.frozen_reference).__name__,
        "gaps": list(getattr(module, "gaps", {}).values()),
        "documents": documents,
    }


def crash(counter: str, times: int) -> int:
    """Let the first process die of a signal, and return the rank after ``times`` deaths, counted in a file."""
    rank = int(os.environ["LOCAL_RANK"])
    if rank == 0:
        died = int(Path(counter).read_text())
        Path(counter).write_text(str(died + 1))
        if died < times:
            os.kill(os.getpid(), signal.SIGSEGV)
    return rank


def train_where_it_lies(**options: Any) -> dict[str, Any]:
    """Train what the strategy moves nowhere, as it does with weights that are offloaded from a GPU."""
    with mock.patch.object(FSDP2Strategy, "model_to_device"):
        return train(**options)


def make_data(task: str, batch_size: int, muse: str | None = None) -> UnlearningDataModule:
    if muse is not None:
        return MUSEDataModule(f"{task}/model", muse, max_length=128, batch_size=batch_size)
    files = f"{task}/forget.jsonl", f"{task}/retain.jsonl"
    return UnlearningDataModule(f"{task}/model", *files, prompt="plain", batch_size=batch_size)


@contextmanager
def compiled_by(backend: str | None) -> Iterator[None]:
    # A warning of torch's compiler about itself, which it would raise in its own middle.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    original = torch.nn.Module.compile
    if backend is not None:
        torch.nn.Module.compile = functools.partialmethod(original, backend=backend)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.Module.compile = original  # type: ignore[method-assign]


def strategy_of(name: str, sharded_checkpoint: bool = False) -> Any:
    if name == "fsdp2" and sharded_checkpoint:
        return FSDP2Strategy(save_distributed_checkpoint=True)
    return name


def weights(module: UnlearningModule) -> dict[str, np.ndarray]:
    """The whole weights of the policy, on rank 0."""
    assert module.policy is not None
    state = full_state_dict(module.policy) if is_sharded(module.policy) else module.policy.state_dict()
    return {name: value.detach().cpu().numpy() for name, value in state.items()}


OPTIMIZERS: dict[str, Any] = {
    # Adam's first step is the gradient over its own size: where that is rounding noise, so is the step. Plain SGD
    # passes rounding on as it is; AdamW gets an epsilon above the noise.
    "plain_sgd": functools.partial(torch.optim.SGD, lr=1e-2),  # the one that has no state
    "sgd": functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "sgd_clipped": functools.partial(torch.optim.SGD, lr=5e-2, momentum=0.9),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-3, eps=1e-2),
}
"""Steps small enough that losses fall: a run that diverges amplifies any rounding."""


def pretrained_weights(task: str) -> dict[str, np.ndarray]:
    """The weights before training."""
    model = AutoModelForCausalLM.from_pretrained(f"{task}/model")
    return {name: value.numpy() for name, value in model.state_dict().items()}


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def command_line(
    arguments: list[str], environment: dict[str, str], interrupt_after: int | None = None
) -> tuple[int | None, str]:
    """Run ``dipo-lightning`` with ``arguments`` and return its exit code (None if interrupted) and what it printed.

    Args:
        environment: Set for the length of the run instead of what the pool set; ``NODE`` stands for the rank.
        interrupt_after: Optimiser steps after which the run is cut off.
    """
    rank = os.environ.get("LOCAL_RANK", "0")
    values = {name: rank if value == "NODE" else value for name, value in environment.items()}
    importlib.import_module("dipo_lightning.cli.trainer")  # sets variables, which must not be taken back with these
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, values))
        if environment:
            os.environ.pop("NODE_RANK", None)
            if "LOCAL_RANK" not in environment:
                os.environ.pop("LOCAL_RANK", None)
        if interrupt_after is not None:
            stack.enter_context(mock.patch.object(UnlearningModule, "on_train_batch_end", interrupt(interrupt_after)))
        stack.enter_context(contextlib.redirect_stdout(printed))
        warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders", UserWarning)  # validate
        try:
            return main(arguments), printed.getvalue()
        except SystemExit as stop:
            return int(stop.code or 0), printed.getvalue()
        except Interrupted:
            return None, printed.getvalue()


def interrupt(after: int) -> Any:
    def on_train_batch_end(self: UnlearningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == after:
            raise Interrupted

    return on_train_batch_end
