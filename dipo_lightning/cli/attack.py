"""The command ``attack``: attempts to recover forgotten knowledge, on the unlearned model and on others to compare."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipo_lightning.benchmarks.robustness.data import is_muse, limited, read_subject, subject_of
from dipo_lightning.benchmarks.robustness.prefixes import Prefixes
from dipo_lightning.benchmarks.robustness.quantization import Quantization
from dipo_lightning.benchmarks.robustness.relearning import Relearning
from dipo_lightning.benchmarks.robustness.sampling import Sampling
from dipo_lightning.benchmarks.robustness.tables import PARTS
from dipo_lightning.benchmarks.robustness.wordings import Wordings
from dipo_lightning.data.prompts import PromptName
from dipo_lightning.errors import InputError
from dipo_lightning.models.export import PARTIAL, check_place
from dipo_lightning.safety.paths import MODEL_CONFIGS, expanded, refuse_model_folder, with_home

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dipo_lightning.data.encoding import PromptStyle

WORDINGS, PREFIXES, QUANTIZATION = Wordings(), Prefixes(), Quantization()
SAMPLING, RELEARNING = Sampling(), Relearning()
ATTACKS = ("wordings", "prefixes", "quantization", "sampling", "relearning")


def attack(
    unlearned: str,
    retain: str | None = None,
    target: str | None = None,
    data: str | None = None,
    split: str | None = None,
    forget: str | None = None,
    kept: str | None = None,
    unrelated: str | None = None,
    prompt: PromptName | None = None,
    output: str | None = None,
    attacks: tuple[str, ...] = ATTACKS,
    wordings: Wordings = WORDINGS,
    prefixes: Prefixes = PREFIXES,
    quantization: Quantization = QUANTIZATION,
    sampling: Sampling = SAMPLING,
    relearning: Relearning = RELEARNING,
    metrics: tuple[str, ...] = PARTS,
    further: dict[str, Any] | None = None,
    max_rows: int | None = None,
    max_new_tokens: int | None = None,
    generation_rows: int = 64,
    device: str | None = None,
) -> None:
    """Attack an unlearned model and, if given, the retain model and the target; models are never changed.

    Prints a table. The output folder holds it, every row (``robustness.json``, which ``score`` can recompute) and a
    picture of each attack. After an interruption, the same command resumes.

    Args:
        unlearned: A model (hub name or folder), or the folder of a run (``fit --run`` or ``forget``), whose exported
            model and data are used.
        retain: The model trained without the forget set; needed for R.
        target: The model that knows the forget set.
        data: A data set in TOFU's schema (with ``split``) or MUSE's: hub name or folder.
        split: Forget split of a data set in TOFU's schema, such as ``forget10``.
        forget: File with the forget rows of user data, instead of ``data``.
        kept: File with the retain rows of user data.
        unrelated: Text file for relearning on unrelated text; blank lines separate the texts.
        prompt: Prompt style used for unlearning; default is the run's, or plain for MUSE, or chat.
        output: Folder of the results; default is ``attacks`` in the run folder, or a folder named after the model.
        attacks: Names of the attacks to make.
        wordings: Options of the rewordings.
        prefixes: Options of the answer prefixes.
        quantization: Options of the quantisation.
        sampling: Options of the sampling.
        relearning: Options of the relearning.
        metrics: Metrics of the answers, from which R and Q are computed too: probability, rouge, extraction_strength,
            exact_memorization, truth_ratio, truth_ratio_prob_mean, rouge_f1 (as MUSE's KnowMem), min_k,
            min_k_plus_plus, or the class path of a metric over rows.
        further: Your own attacks by name: a class path, or ``class_path`` with ``init_args``.
        max_rows: Maximum number of forget rows, spread evenly over the forget set.
        max_new_tokens: Maximum length of an answer in tokens; default is the benchmark's (TOFU 200, MUSE 32).
        generation_rows: Maximum number of rows in a generation batch.
        device: Device such as ``cuda``; default is a GPU if there is one.
    """
    from dipo_lightning.benchmarks.robustness.running import attack_models, build_attacks, named_attacks
    from dipo_lightning.benchmarks.robustness.tables import markdown_table
    from dipo_lightning.callbacks.run_record import FolderLock

    chosen = named_attacks(attacks, (wordings, prefixes, quantization, sampling, relearning))
    given = with_home(unlearned)
    run = run_settings(given)
    model, others, place = str(run.get("model", unlearned)), {"retain": retain, "target": target}, chosen_device(device)
    beside = given / "attacks" if run else Path(f"{model.rstrip('/').rpartition('/')[2]}-attacks")
    folder = beside if output is None else expanded(output, "output")
    refuse_model_folder(folder, "--output")
    check_place(folder, "attack", replace=True)
    models = {"unlearned": model} | {name: source for name, source in others.items() if source is not None}
    if prompt is None and not run.get("prompt"):
        run["prompt"] = _usual_prompt(data or getattr(run.get("module"), "data", None), split)
    style = _style(run, model, prompt)
    for name in models.keys() - {"unlearned"}:
        _check_other(models[name], run, prompt, style)
    if data is None and forget is None and "module" in run:
        run["module"].read()
        subject = subject_of(run["module"], style)
    else:
        subject = read_subject(style, data, split, forget, kept)
    subject = replace(subject, metrics=metrics, generation_rows=generation_rows, device=place)
    subject = limited(subject, unrelated, max_rows)
    if max_new_tokens is not None:
        subject = replace(subject, max_new_tokens=max_new_tokens)
    replaced = _log_in_run(run)
    made = build_attacks(chosen, further)
    with FolderLock() as lock:
        lock.hold(folder, advice="two attacks would write over each other. Wait until it has ended.")
        document = attack_models(
            {name: partial(_load, source, place) for name, source in models.items()},
            subject,
            made,
            folder,
            run.get("provenance"),
            replaced=replaced,
        )
        if replaced is not None:
            _add_to_run(replaced, document)
    if retain is None:
        print("No retain model was given (--retain): no score R, and no comparison with a model that never knew.")
    print(f"{markdown_table(document)}\n\nEvery row, the table and the pictures: {folder}")


def _usual_prompt(data: str | None, split: str | None) -> PromptName:
    """Return the name of the prompt style for data of which no run says it."""
    return "plain" if data is not None and split is None and is_muse(str(data)) else "chat"


def _style(run: dict[str, Any], model: str, prompt: PromptName | None) -> PromptStyle:
    """The prompt style that is named, or else the run's, with a model's tokenizer."""
    from dipo_lightning.cli.chat import load_style

    further = {} if prompt else run.get("prompt_options") or {}
    return load_style(model, prompt or run["prompt"], **further)


def _check_other(source: str, run: dict[str, Any], prompt: PromptName | None, style: PromptStyle) -> None:
    """Refuse a model that does not exist, or that uses another tokenizer or chat template than the unlearned one."""
    from dipo_lightning.models.loading import find_source, lacks_tokenizer

    find_source(source)
    if lacks_tokenizer(source):
        return
    if _style(run, source, prompt).fingerprint() != style.fingerprint():
        raise InputError(
            f"{source} has another tokenizer or chat template than the unlearned model, so that the same questions "
            "would be other tokens and the numbers could not be compared. Leave it out."
        )


def chosen_device(name: str | None) -> torch.device:
    """Return the device of a name, or by default a GPU where there is one.

    Raises:
        InputError: There is no such device here.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(f"device is {name}, which torch cannot use here: {str(error).splitlines()[0]}") from error
    return device


def _load(source: str, device: torch.device) -> nn.Module:
    from dipo_lightning.models.loading import load_policy

    policy: nn.Module = load_policy(source).to(device)  # type: ignore[arg-type]  # stubs of transformers
    return policy


def _log_in_run(run: dict[str, Any]) -> Path | None:
    """Return the file of the log among a run's evaluations; None without any."""
    from dipo_lightning.evaluation.aggregates import evaluation_file

    if "evaluations" not in run:
        return None
    where = {"epoch": 0, "step": 0} | (run["provenance"] or {})
    file: Path = run["evaluations"] / f"{evaluation_file('robustness', where)}_attack.json"
    return file


def _add_to_run(log: Path, document: dict[str, Any]) -> None:
    """Add the log to a run's evaluations (for its page, its card and comparisons) and to TensorBoard."""
    from dipo_lightning.benchmarks.robustness.metrics import settings_pictures
    from dipo_lightning.evaluation.aggregates import flat_numbers
    from dipo_lightning.evaluation.run_folder import write_json

    folder, step = log.parent.parent, document["provenance"]["step"]
    write_json(log, document)
    if any(folder.glob("events.out.tfevents.*")):
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            for name, value in flat_numbers(document["aggregates"]).items():
                writer.add_scalar(f"robustness/{name}", value, step)
            for name, figure in settings_pictures(document["settings"], document["aggregates"]).items():
                writer.add_figure(f"robustness/{name}", figure, step)


def run_settings(folder: Path) -> dict[str, Any]:
    """Return the model, data module and evaluations of a run folder; empty for the folder of a model.

    The run in a folder of `forget` is a run, too; it has no evaluations.
    """
    import yaml
    from lightning.pytorch import LightningDataModule

    from dipo_lightning.cli.forget import ROWS, read_sources
    from dipo_lightning.evaluation.benchmark import import_class
    from dipo_lightning.evaluation.logs import evaluations_of_runs, last_of_each

    rows = None
    if read_sources(folder):
        folder, rows = folder / "run", folder / ROWS
    evaluations, config_file = folder / "evaluations", folder / "config.yaml"
    is_model = any((folder / name).is_file() for name in MODEL_CONFIGS)
    if not evaluations.is_dir() and (is_model or not config_file.is_file()):
        return {}
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    models = sorted({path.parent for name in MODEL_CONFIGS for path in folder.glob(f"*/{name}")})
    models = [path for path in models if not path.name.endswith(PARTIAL)]
    if not models:
        raise InputError(
            f"{folder} is a run without an exported model; export its checkpoint (`dipo-lightning export`), and give "
            "that folder."
        )
    if len(models) > 1:
        raise InputError(f"{folder} has exported several models; give one: {', '.join(map(str, models))}.")
    options = (config.get("data") or {}).get("init_args") or {}
    if rows is not None:  # wherever the folder is now
        options |= {name: str(rows / f"{name}.jsonl") for name in ("forget", "retain") if options.get(name)}
    documents = last_of_each(evaluations_of_runs(evaluations.glob("*.json")))
    provenance = json.loads(documents[0].read_text(encoding="utf-8"))["provenance"] if documents else {}
    found = {"model": models[0], "provenance": provenance}
    if evaluations.is_dir():
        found["evaluations"] = evaluations
    if kind := (config.get("data") or {}).get("class_path"):
        found["module"] = import_class(kind, LightningDataModule)(**options)
    return found | {name: options.get(name) for name in ("prompt", "prompt_options")}
