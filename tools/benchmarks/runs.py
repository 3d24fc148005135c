"""Whole runs: start-up of the commands, a fit on one device and under FSDP2, checkpoints, large sets, long answers."""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from dipo_lightning.benchmarks.tofu.data import TOFUDataModule
from dipo_lightning.callbacks.run_record import StreamingIO
from dipo_lightning.methods.dipo.module import DiPOModule
from dipo_lightning.models.distributed import FSDP2Strategy
from dipo_lightning.quickstart.authors import write_fictitious
from dipo_lightning.quickstart.model import train_tokenizer, write_untrained
from tools.benchmarks.measuring import Measured, PeakMemory, Table, alternate, medians, ratio, run_child, timed
from tools.benchmarks.steps import Size, measure, quiet_trainer

TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SHARPNESS = 20
"""Scale of the tiny decoder's logits: a few tokens get most of the probability, as a trained model gives it."""
COMMAND = (sys.executable, "-m", "dipo_lightning")


def write_tiny(folder: Path) -> tuple[Path, Path]:
    """A tiny Llama with random weights and a small data set in TOFU's schema; the folders of both."""
    data, model = folder / "data", folder / "tiny"
    if not model.is_dir():
        write_fictitious(data)
        texts = (data / "full.json").read_text(encoding="utf-8").splitlines()
        write_untrained(model, train_tokenizer(texts, 1024), 0, max_position_embeddings=512, **TINY)
    return model, data


def startup(folder: Path, rounds: int) -> Table:
    """CPU and wall seconds of ``--help``, ``fit --help``, and a whole tiny ``fit`` of one step."""
    model, data = write_tiny(folder)
    fit = ["fit", "--model.pretrained", str(model), "--data", "dipo_lightning.TOFUDataModule", "--data.data", str(data)]
    fit += ["--data.prompt", "plain", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    commands = {"--help": ["--help"], "fit --help": ["fit", "--help"], "tiny fit, one step": fit}
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    run: dict[str, Callable[[], Measured]] = {
        name: partial(run_child, [*COMMAND, *line], env=environment, cwd=folder) for name, line in commands.items()
    }
    run["import torch, lightning, transformers"] = lambda: run_child(
        [sys.executable, "-c", "import torch, lightning.pytorch, transformers.modeling_utils"], env=environment
    )
    found = alternate(run, rounds)
    rows: list[dict[str, Any]] = [
        {"command": name, "CPU s": one["cpu"], "seconds": one["wall"], "peak MiB": one["peak_mib"]}
        for name, one in ((name, medians(measured)) for name, measured in found.items())
    ]
    table = Table("Start-up", rows, f"One thread, files in the page cache; medians of {rounds} alternating rounds.")
    for name, limit in (("--help", 0.1), ("fit --help", 3.0), ("tiny fit, one step", 5.0)):
        cpu = [one["cpu"] for one in found[name]]
        seconds = {"ratio": statistics.median(cpu), "low": min(cpu), "high": max(cpu)}
        table.promise(f"CPU seconds of {name}", seconds, limit)
    return table


class Moments(pl.Callback):
    """Times of the first batch and of every step, and what ``at_end`` measures at the end."""

    def __init__(self, at_end: Callable[[pl.Trainer], Any] | None = None) -> None:
        self.at_end, self.first, self.began = at_end, 0.0, time.perf_counter()
        self.steps: list[Measured] = []
        self.found: Any = None

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.first = self.first or time.perf_counter() - self.began
        self.clock = timed(trainer.strategy.root_device)
        self.step = self.clock.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.__exit__(None, None, None)
        self.steps.append(self.step)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.found = None if self.at_end is None else self.at_end(trainer)


def fits(model: Any, tokenizer: str, data: str, prompt: str, folder: Path, device: torch.device, dtype: str,
         steps: int, saves: int) -> Iterator[Table]:  # fmt: skip
    """Steps within ``fit`` on one device and under FSDP2 with one process, checkpoints of it, and a resumed fit."""

    def run(
        name: str, at_end: Callable[[pl.Trainer], Any] | None = None, **options: Any
    ) -> tuple[Moments, dict[str, Any]]:
        module: Any = DiPOModule(
            "shared", reference_cache=str(folder / "cache"), compute_dtype=dtype if name == "fsdp2" else "auto"
        )
        module.load = lambda dtype=torch.float32: copy.deepcopy(model).to("cpu", dtype)
        rows = TOFUDataModule(tokenizer, data, prompt=prompt, batch_size=8)
        strategy: Any = FSDP2Strategy() if name == "fsdp2" else "auto"
        memory, moments = PeakMemory(device), Moments(at_end)
        trainer = quiet_trainer(
            device,
            "float32" if name == "fsdp2" else dtype,
            strategy=strategy,
            max_steps=steps + 2 + options.pop("more", 0),
            callbacks=[moments],
            default_root_dir=folder,
        )
        trainer.fit(module, rows, weights_only=True, **options)
        later = medians(moments.steps[2:] or moments.steps)
        row: dict[str, Any] = {"strategy": name, "seconds": later["seconds"], "CPU s": later["cpu"]}
        row["first batch s"] = moments.first
        print(f"  fit {name}: {row}", flush=True)
        return moments, row | {"peak MiB": memory.rise() / 2**20}

    target = folder / "last.ckpt"
    moments, single = run("auto", lambda trainer: _save_and_load(trainer, target, saves))
    _, resumed = run("auto", ckpt_path=str(target), more=2)
    _, sharded = run("fsdp2")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    inside = Table(
        "DiPO within fit, 8 rows to forget and 8 to keep",
        [single, resumed | {"strategy": "auto, resumed"}, sharded],
        f"Hooks, gradient norm and data loader included; {dtype}; medians after two steps; FSDP2 with world size 1.",
    )
    yield inside
    yield _checkpoints(moments.found, target)


def _save_and_load(trainer: pl.Trainer, target: Path, rounds: int) -> dict[str, list[Measured]]:
    """Write the run's checkpoint and read it, through the package's files and through Lightning's."""

    def through(io: CheckpointIO, path: Path) -> Measured:
        trainer.strategy.checkpoint_io = io
        memory = PeakMemory(torch.device("cpu"))
        with timed(trainer.strategy.root_device) as save:
            trainer.save_checkpoint(path)
        found = {"save": save["wall"], "save cpu": save["cpu"], "save peak": memory.rise()}
        memory = PeakMemory(torch.device("cpu"))
        with timed(trainer.strategy.root_device) as load:
            io.load_checkpoint(path, map_location="cpu", weights_only=True)
        return found | {"load": load["wall"], "load cpu": load["cpu"], "load peak": memory.rise()}

    variants = {"ours": (StreamingIO(), target), "Lightning's": (TorchCheckpointIO(), target.with_name("other.ckpt"))}
    return alternate({name: partial(through, *one) for name, one in variants.items()}, rounds)


def _checkpoints(found: dict[str, list[Measured]], target: Path) -> Table:
    size = target.stat().st_size / 2**20
    rows = []
    for name, measured in found.items():
        one = medians(measured)
        row: dict[str, Any] = {"checkpoint": name}
        for what in ("save", "load"):
            row |= {f"{what} s": one[what], f"{what} CPU s": one[f"{what} cpu"]}
            row[f"{what} peak MiB"] = one[f"{what} peak"] / 2**20
        rows.append(row)
    table = Table(
        "Checkpoint of the same fit",
        rows,
        f"{size:.0f} MiB with AdamW's states; medians of {len(found['ours'])} alternating rounds.",
    )
    for what in ("save", "load"):
        table.promise(f"{what}: ours / Lightning's", ratio(found["ours"], found["Lightning's"], what), 1.05)
    return table


def long_answers(device: torch.device, dtype: str, quick: bool) -> Table:
    """Time and memory of a step on one long answer, by tokens and by vocabulary: a tiny decoder under a large head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ["model alone", "GradDiff", "NPO", "DiPO", "DiPO, live", "GradDiff, usual"]
    rows = []
    for vocabulary, length in ((32_000, 10_000), (256_000, 2_500), (256_000, 5_000), (256_000, 10_000)):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=length, tie_word_embeddings=True, **TINY)
        chosen = names if length * vocabulary < 10**9 or device.type == "cuda" else names[:-1]
        model = LlamaForCausalLM(config)
        model.model.norm.weight.data *= SHARPNESS
        found = measure(model, Size(1, length, length), chosen, 1 if quick else 3, device, dtype)
        for name in chosen[1:]:
            one = medians(found[name])
            row: dict[str, Any] = {"vocabulary": vocabulary, "tokens": length, "variant": name}
            rows.append(row | {"seconds": one["seconds"], "CPU s": one["cpu"], "loss MiB": one["loss"] / 2**20})
    return Table(
        "One answer of many tokens over a large vocabulary", rows,
        "One row to forget and one to keep, all supervised, hidden size 64. Logits of 10,000 tokens over 256,000 "
        "entries are 9766 MiB in float32, once.",
    )  # fmt: skip


def large_sets(folder: Path, forget: int, retain: int) -> Table:
    """Time to the first step and peak memory of ``fit`` with large sets, each in a process of its own."""
    model, _ = write_tiny(folder)
    rows = []
    for count, kept in ((forget // 10, retain // 10), (forget, retain)):
        files = [folder / f"forget-{count}.jsonl", folder / f"retain-{kept}.jsonl"]
        write_rows(files[0], "Ada", count)
        write_rows(files[1], "Ben", kept)
        line = ["fit", "--model.pretrained", str(model), "--data.forget", str(files[0]), "--data.retain", str(files[1])]
        line += ["--data.prompt", "plain", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
        root = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        one = run_child([*COMMAND, *line], env=environment, cwd=folder)
        rows.append({"rows to forget": count, "rows to keep": kept, "seconds": one["wall"], "CPU s": one["cpu"],
                     "peak MiB": one["peak_mib"]})  # fmt: skip
    return Table("A whole fit of one step on large sets", rows, "Tiny model, one process; start-up included.")


def write_rows(path: Path, name: str, count: int) -> None:
    """Questions and answers of some forty words, all different."""
    words = ("the", "town", "river", "book", "teacher", "garden", "window", "letter", "summer", "north", "old")
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            chosen = " ".join(words[(i >> shift) % len(words)] for shift in range(24))
            row = {
                "question": f"What does {name} {i} say of {chosen[:60]}?",
                "answer": f"{name} {i} says that {chosen}.",
            }
            file.write(json.dumps(row) + "\n")
