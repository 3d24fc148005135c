"""Peak memory of unlearning over a base in 4 bits, measured and as ``dipo-lightning plan`` computes it; no download.

    python tools/benchmarks/qlora.py                               # Llama-3.1-8B's shape, random weights, on a GPU
    python tools/benchmarks/qlora.py --shape llama-3.2-1b --method NPO --no-checkpointing

Two steps of a method on rows of one length, through the Trainer as ``fit`` runs it. Needs bitsandbytes, and host memory
for the whole model in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

import dipo_lightning
from dipo_lightning.cli.plan import GB, SHAPES, Run, configuration, make_plan
from dipo_lightning.models.lora import LoRA
from tools.benchmarks.measuring import machine
from tools.benchmarks.steps import make_batch, quiet_trainer


def random_model(shape: str, dtype: torch.dtype = torch.float32) -> Any:
    """Build a model of a shape on the CPU from one small repeated block of random numbers: in seconds, not minutes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration(shape), dtype=dtype)
    model.to_empty(device="cpu")
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.02
    for name, weight in model.named_parameters():
        flat = weight.data.view(-1)
        for start in range(0, flat.numel(), len(block)):
            flat[start : start + len(block)] = block[: flat.numel() - start]
        if name.endswith("norm.weight"):
            weight.data.fill_(1)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its buffers are no weights
    model.tie_weights()
    return model.eval()


class Peaks(pl.Callback):
    """Memory and seconds once the model is packed, and of every step."""

    def __init__(self) -> None:
        self.loaded, self.steps = 0.0, list[dict[str, float]]()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.loaded = torch.cuda.memory_allocated() / GB
        self.loading_peak = torch.cuda.max_memory_allocated() / GB

    def on_train_batch_start(self, *_: Any) -> None:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        torch.cuda.synchronize()
        seconds, peak = time.perf_counter() - self.began, torch.cuda.max_memory_allocated() / GB
        reserved = torch.cuda.max_memory_reserved() / GB
        loss = float(outputs["loss"])
        self.steps.append({"seconds": seconds, "peak GB": peak, "reserved GB": reserved, "loss": loss})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.1-8b", choices=SHAPES)
    parser.add_argument("--method", default="DiPO", help="DiPO, NPO, GradDiff ...")
    parser.add_argument("--batch-size", type=int, default=4, help="rows to forget, with as many to keep")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--answer", type=int, default=64, help="supervised ones of them")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--base", default="nf4", choices=("nf4", "float32"))
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()

    device, began = torch.device("cuda"), time.perf_counter()
    method: Any = getattr(dipo_lightning, f"{options.method}Module")
    module = method(
        options.shape,
        lora=LoRA(options.rank, base=options.base),
        reference="adapters_off",
        activation_checkpointing=not options.no_checkpointing,
    )
    module.load = lambda dtype=torch.float32: random_model(options.shape, dtype)
    vocabulary = SHAPES[options.shape]["vocab_size"]
    lengths = [options.length] * options.batch_size
    batch = make_batch(lengths, [length - options.answer for length in lengths], vocabulary, torch.device("cpu"))
    peaks = Peaks()
    trainer = quiet_trainer(device, "bfloat16", max_steps=options.steps, callbacks=[peaks])
    batches: Any = [batch] * options.steps
    trainer.fit(module, DataLoader(batches, batch_size=None))
    run = Run(
        batch_size=options.batch_size,
        length=options.length,
        answer_length=options.answer,
        trainable="qlora" if options.base == "nf4" else "lora",
        lora_rank=options.rank,
        reference="adapters_off",
        strategy="ddp",
        activation_checkpointing=not options.no_checkpointing,
        form="hidden" if module.from_hidden else "logits",
    )
    planned = make_plan(options.shape, run)
    found = {
        "options": vars(options),
        "machine": machine(device),
        "seconds to the first step": time.perf_counter() - began - sum(step["seconds"] for step in peaks.steps),
        "allocated after loading, GB": peaks.loaded,
        "peak while loading, GB": peaks.loading_peak,
        "steps": peaks.steps,
        "plan, GB": {name: value / GB for name, value in planned.parts.items()} | {"total": planned.total / GB},
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
