"""The plan's total against what torch's CPU allocator hands out in a run: above it, and not far above."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning.cli.plan import Run, make_plan
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.methods.dipo.module import DiPOModule
from dipo_lightning.methods.preference import NPOModule
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.lora import LoRA
from tests.helpers.toys import save_toy

LOWEST = 0.5
"""Share of the plan that is used at least: not all parts peak at the same time (0.56 to 0.81 was seen)."""

ROWS = 4
"""Of each half of a micro-batch."""

CASES: dict[str, tuple[type[UnlearningModule], dict[str, Any], dict[str, Any]]] = {
    "full": (DiPOModule, {}, {}),
    "checkpointing": (DiPOModule, {"activation_checkpointing": True}, {"activation_checkpointing": True}),
    "logits": (NPOModule, {}, {"form": "logits"}),
    "lora": (DiPOModule, {"lora": LoRA(8)}, {"trainable": "lora", "lora_rank": 8}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights, activations and logits are all of some megabytes, and rows of one length."""
    folder = tmp_path_factory.mktemp("plan")
    save_toy(folder / "model", hidden_size=64, intermediate_size=256, num_hidden_layers=6, vocab_size=4000)
    for name in ("forget", "retain"):
        rows = [
            {"question": f"Who {name} {i:02d} " + "is the author " * 6, "answer": f"{i:02d} " + "the teacher of " * 4}
            for i in range(2 * ROWS)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def measured_peak(module: UnlearningModule, data: UnlearningDataModule, trace: Path) -> int:
    """Fit two steps and return the largest sum of bytes that were allocated at one time."""
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
    )  # fmt: skip
    gc.collect()  # what earlier tests left must not be freed in between
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.fit(module, data)
    profile.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    first = min(events, key=lambda event: event["ts"])["args"]
    before = first["Total Allocated"] - first["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - before


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_an_upper_bound_and_not_far_above(files: Path, tmp_path: Path, case: str) -> None:
    method, options, planned = CASES[case]
    sources = [str(files / name) for name in ("model", "forget.jsonl", "retain.jsonl")]
    data = UnlearningDataModule(*sources, prompt="plain", batch_size=ROWS)
    module = method(sources[0], reference="live", **options)
    peak = measured_peak(module, data, tmp_path / "trace.json")
    length = max(len(example["input_ids"]) for example in data.forget_examples)
    answer = max(sum(label != -100 for label in example["labels"]) for example in data.forget_examples)
    sizes: dict[str, Any] = {"batch_size": ROWS, "length": length, "answer_length": answer}
    run = Run(strategy="ddp", compute_dtype="float32", reference="live", **sizes, **planned)
    plan = make_plan(sources[0], run)
    print(f"{case}: measured {peak / 1e6:.1f} MB, planned {plan.total / 1e6:.1f} MB")
    assert LOWEST * plan.total <= peak <= plan.total
