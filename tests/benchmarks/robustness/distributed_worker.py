"""Every attack on a toy, alone or as one of two processes on gloo."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

from dipo_lightning.benchmarks.robustness.attack import Plain, Subject
from dipo_lightning.benchmarks.robustness.prefixes import Prefixes
from dipo_lightning.benchmarks.robustness.quantization import Quantization
from dipo_lightning.benchmarks.robustness.relearning import Relearning
from dipo_lightning.benchmarks.robustness.running import planned
from dipo_lightning.benchmarks.robustness.sampling import Sampling
from dipo_lightning.benchmarks.robustness.wordings import Wordings
from dipo_lightning.data.prompts import prompt_style
from tests.helpers.toys import toy_model, toy_tokenizer

ROWS = [{"index": i, "question": f"Who is {i}?", "answer": f"The author {i * 7}"} for i in range(5)]


def attacked():
    """All rows of all attacks."""
    torch.set_num_threads(1)
    subject = Subject(
        prompt_style("plain", toy_tokenizer()), ROWS[:3], ROWS[3:], max_new_tokens=3, generation_rows=2, batch_tokens=60
    )
    sampling, relearning = Sampling(samples=3, k=(1,)), Relearning(batch_size=2, lr=0.01)
    attacks = [Plain(), Wordings(few_shot=1), Prefixes(shares=(50,)), Quantization(), sampling, relearning]
    model = toy_model()
    found = {}
    for attack, condition in planned(attacks, subject):
        found |= attack.measure(model, subject, condition)
    return json.loads(json.dumps(found))


def run(rank, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        (Path(folder) / f"rank{rank}.json").write_text(json.dumps(attacked()))
    finally:
        dist.destroy_process_group()
