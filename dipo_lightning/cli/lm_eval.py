"""The command ``lm-eval``: tasks of the lm-evaluation-harness on a model, or on the model that a run exported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dipo_lightning.errors import check_choice
from dipo_lightning.safety.paths import expanded, refuse_model_folder, with_home

_LABEL = 60
"""Maximum length in characters of the tasks' names in the name of a log."""


def lm_eval(
    model: str,
    tasks: str = "",
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
    include_path: str | None = None,
    dtype: str = "float32",
    output: str | None = None,
    device: str | None = None,
) -> None:
    """Evaluate a model on tasks of EleutherAI's lm-evaluation-harness, such as MMLU and WMDP.

    Prints the results, and writes them with every document as JSON, which ``score`` can recompute. For a run they are
    added to its evaluations, so that its results page and ``compare`` show them.

    Args:
        model: A model (hub name or folder), or a run folder, whose exported model is used.
        tasks: Names of tasks, groups or tags, separated by commas: ``mmlu,wmdp_bio``.
        num_fewshot: Number of examples before each question; default is that of each task.
        limit: Maximum number of documents per task.
        batch_size: Documents per forward pass.
        chat_template: Write prompts with the tokenizer's chat template.
        include_path: A folder with your own tasks (YAML).
        dtype: Dtype of the weights: float32, bfloat16 or float16.
        output: Folder of the results; default is the run's, or one named after the model.
        device: Device such as ``cuda``; default is a GPU if there is one.
    """
    import torch

    from dipo_lightning.benchmarks.lm_eval.harness import Options, load_tasks, measure_tasks, settings_of
    from dipo_lightning.benchmarks.lm_eval.metrics import LMEval
    from dipo_lightning.cli.attack import chosen_device, run_settings
    from dipo_lightning.evaluation.aggregates import (
        evaluation_document,
        evaluation_file,
        flat_numbers,
        log_aggregates,
        metric_meanings,
    )
    from dipo_lightning.evaluation.callback import summary_table
    from dipo_lightning.evaluation.provenance import installed_versions
    from dipo_lightning.evaluation.run_folder import write_json
    from dipo_lightning.models.distributed import evaluation_mode
    from dipo_lightning.models.fingerprint import model_fingerprint
    from dipo_lightning.models.loading import load_policy, load_tokenizer
    from dipo_lightning.report.page import write_page

    check_choice("", "dtype", dtype, ("float32", "bfloat16", "float16"))
    options = Options(num_fewshot, limit, batch_size, chat_template, include_path)
    names = tasks.replace(",", " ").split()
    run = run_settings(with_home(model))
    source = str(run.get("model", model))
    beside = run.get("evaluations") or Path(f"{Path(source).name}-lm-eval")
    folder = beside if output is None else expanded(output, "output")
    refuse_model_folder(folder, "--output")
    loaded = load_tasks(names, options)
    tokenizer = load_tokenizer(source)
    place = chosen_device(device)
    policy = load_policy(source, dtype=getattr(torch, dtype)).to(place)  # type: ignore[arg-type]
    with evaluation_mode(policy):
        sets: dict[str, Any] = measure_tasks(policy, tokenizer, place, loaded, options)
    benchmark, settings = LMEval(), settings_of(names, loaded, options)
    where = {"epoch": 0, "step": 0, "pretrained": source, "versions": installed_versions()} | run.get("provenance", {})
    found = log_aggregates(benchmark, sets, settings)
    where |= {"weights": model_fingerprint(policy)}
    document = evaluation_document(benchmark, settings, sets, found, provenance=where)
    label = log_label(names, num_fewshot=num_fewshot, limit=limit, chat_template=chat_template, dtype=dtype)
    path = folder / f"{evaluation_file(benchmark.name, where)}_{label}.json"
    write_json(path, document)
    meanings, now = metric_meanings(benchmark.metrics(settings)), flat_numbers(document["aggregates"])
    title, labels = benchmark.describe(settings, sets), {name: meanings[name].label for name in now}
    print(summary_table(title, None, now, labels, document, meanings))
    if "evaluations" in run and output is None:
        print(f"The results page is {write_page(folder.parent)}")
    print(f"Every document: {path}")


def log_label(names: Sequence[str], **options: Any) -> str:
    """Return the tasks' names for the name of a log, with a hash where they are cut or options are not the defaults."""
    whole, usual = "-".join(names), {"num_fewshot": None, "limit": None, "chat_template": False, "dtype": "float32"}
    if len(whole) <= _LABEL and options == usual:
        return whole
    content = json.dumps([list(names), options], sort_keys=True)
    return f"{whole[:_LABEL]}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
