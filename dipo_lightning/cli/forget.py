"""The command ``forget``: from a model and two files to an unlearned model and a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dipo_lightning.errors import InputError

METHODS = {
    "selective": "dipo_lightning.SelectiveModule",
    "dipo": "dipo_lightning.DiPOModule",
    "npo": "dipo_lightning.NPOModule",
    "graddiff": "dipo_lightning.GradDiffModule",
}
"""Methods that the command knows by a short name."""

BATCH_SIZE = 8
STEPS = 40
"""Optimiser steps at most for up to `BATCH_SIZE` x 2 rows; the stopping rule ends most runs sooner."""
PASSES = 6
"""Passes over more rows than that, at most."""
CHECK_EVERY = 8
LEARNING_RATE, WIDTH = 1e-4, 576
"""Learning rate that was measured, and the hidden size of the model it was measured on (SmolLM2-135M)."""
HELD_OUT, FEWEST_HELD_OUT = 0.15, 20
"""Share of the retain rows that is not trained on, where there are at least so many rows."""
NEIGHBOURS = 50
EXAMINATIONS = "examinations"
REWORDINGS = 2
"""Rewordings of each question that are asked: the rows' own, then those by rule."""
SAMPLES_BEFORE = 2
"""Sampled answers of the target to each question: it is known to say them."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run; each is chosen by a rule where it is not given.

    Attributes:
        method: Class of the module.
        lr: Learning rate of AdamW.
        batch_size: Forget rows per step.
        epochs: Most passes over the forget rows.
        check_every: Steps between two looks at what is still said.
    """

    method: str
    lr: float
    batch_size: int
    epochs: int
    check_every: int


def choose_settings(rows: int, hidden_size: int, method: str, given: dict[str, Any]) -> Settings:
    """Choose settings by the number of forget rows and the model's width.

    The learning rate falls with the width, as AdamW's best one does; the number of steps is at least `STEPS`, and with
    more rows `PASSES` passes.

    Args:
        rows: Number of forget rows.
        hidden_size: Width of the model.
        method: Short name or class path.
        given: What the user gave: ``lr``, ``batch_size``, ``epochs``; None is chosen.
    """
    batch_size = given.get("batch_size") or min(BATCH_SIZE, rows)
    per_epoch = math.ceil(rows / batch_size)
    epochs = given.get("epochs") or max(PASSES, math.ceil(STEPS / per_epoch))
    lr = given.get("lr") or float(f"{LEARNING_RATE * min(1.0, WIDTH / hidden_size):.2g}")
    check_every = min(max(CHECK_EVERY, per_epoch), epochs * per_epoch)
    return Settings(METHODS.get(method, method), lr, batch_size, epochs, check_every)


def forget(
    model: str,
    forget: str,
    retain: str | None = None,
    output: str = "runs/forget",
    method: str = "selective",
    untaught: str | None = None,
    prompt: Literal["auto", "chat", "plain", "llama2"] = "auto",
    lr: float | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    samples: int = 20,
    paraphrases: int = 0,
    seed: int = 0,
    accelerator: str = "auto",
) -> None:
    """Make a model forget the rows of a file, and say whether it did.

    Splits the retain rows, chooses settings, unlearns until no private value is said any more, exports the model, and
    ends with a verdict: forgotten, partly, damaged or barely changed, with the numbers that it rests on. The same
    command again resumes.

    Args:
        model: Hub name, folder or GGUF file of the model that must forget.
        forget: File, folder or data set of questions with the answers to forget; a column ``private`` may name the
            values.
        retain: The same of what must be kept.
        output: Folder of the run.
        method: ``selective``, ``dipo``, ``npo``, ``graddiff``, or the class path of a module.
        untaught: A model that never knew the forget rows, such as the one before fine-tuning: its probability of each
            value is the floor.
        prompt: Prompt style; ``auto`` takes the model's chat template where it has one, else plain.
        lr: Learning rate; chosen by the model's width where it is not given.
        batch_size: Forget rows per step; at most 8 where it is not given.
        epochs: Most passes over the forget rows; chosen by their number where it is not given.
        samples: Sampled answers to each question and rewording in the examination.
        paraphrases: Rewordings of each question that the target itself writes, beside two by rule and the rows' own.
        seed: Seed of data order, training and samples.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
    """
    from dipo_lightning.cli.child import fit

    folder = Path(output).expanduser()
    rows = _prepare(folder, forget, retain, seed)
    style_name = _style_name(model, prompt)
    settings = choose_settings(
        len(rows.forget), _hidden_size(model), method, {"lr": lr, "batch_size": batch_size, "epochs": epochs}
    )
    _say(settings, rows)
    if paraphrases:
        rows = _paraphrased(
            folder / EXAMINATIONS / "paraphrases.json", model, rows, style_name, paraphrases, seed, accelerator
        )
    effort = {"samples": samples, "seed": seed, "rewordings": REWORDINGS + paraphrases}
    few = effort | {"samples": min(samples, SAMPLES_BEFORE)}
    before = _examined(folder / EXAMINATIONS / "before.json", model, rows, style_name, few, "target", accelerator)
    config = run_config(folder, model, settings, style_name, seed, accelerator, bool(rows.retain))
    fit(config, folder / "run")
    unlearned = folder / "run" / "model"
    after = _examined(
        folder / EXAMINATIONS / "after.json", str(unlearned), rows, style_name, effort, "unlearned", accelerator
    )
    floors = None
    if untaught is not None:
        floors = _examined(
            folder / EXAMINATIONS / "untaught.json", untaught, rows, style_name, effort, "untaught", accelerator
        )
    _conclude(folder, unlearned, rows, before, after, floors, settings)


@dataclass(frozen=True)
class SplitRows:
    """Rows of a run.

    Attributes:
        forget: To forget.
        retain: To keep and train on.
        held_out: To keep, never trained on.
    """

    forget: list[dict[str, Any]]
    retain: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def split_rows(forget: Sequence[dict[str, Any]], retain: Sequence[dict[str, Any]], seed: int) -> SplitRows:
    """Hold some retain rows out; the same ones for one seed.

    Raises:
        InputError: A forget row is running text.
    """
    import random

    for row in forget:
        if "question" not in row:
            where = row.get("where", "the forget data")
            raise InputError(f"{where}: forget works on questions with answers; for running text use fit (docs: MUSE).")
    retain = [row for row in retain if "question" in row]
    order = list(range(len(retain)))
    random.Random(seed).shuffle(order)
    count = round(HELD_OUT * len(retain)) if len(retain) >= FEWEST_HELD_OUT else 0
    out = set(order[:count])
    return SplitRows(
        list(forget),
        [row for number, row in enumerate(retain) if number not in out],
        [row for number, row in enumerate(retain) if number in out],
    )


def run_config(
    folder: Path, model: str, settings: Settings, style: str, seed: int, accelerator: str, has_retain: bool
) -> dict[str, Any]:
    """Return the configuration of the run, as ``fit`` takes it."""
    init: dict[str, Any] = {
        "pretrained": model,
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": settings.lr, "weight_decay": 0.0, "betas": [0.9, 0.95]},
        },
        "schedule": "linear",
        "warmup_steps": 3,
        "freeze_projection": True,
    }
    export: dict[str, Any] = {"folder": "model"}
    if settings.method == METHODS["selective"]:
        init["check_every"] = settings.check_every
        export["best"] = {"monitor": "train/remaining", "mode": "min"}
    data = {"forget": str(folder / "data" / "forget.jsonl"), "prompt": style, "seed": seed}
    if has_retain:
        data["retain"] = str(folder / "data" / "retain.jsonl")
    return {
        "seed_everything": seed,
        "trainer": {
            "accelerator": accelerator,
            "devices": 1,
            "max_epochs": settings.epochs,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "dipo_lightning.ExportModel", "init_args": export}],
        },
        "model": {"class_path": settings.method, "init_args": init},
        "data": {
            "class_path": "dipo_lightning.UnlearningDataModule",
            "init_args": data | {"batch_size": settings.batch_size},
        },
    }


def _prepare(folder: Path, forget: str, retain: str | None, seed: int) -> SplitRows:
    """Read and split the rows, and keep them beside the run, for it to be resumed."""
    from dipo_lightning.data.rows import read_rows, refuse_overlap

    kept = read_rows(retain) if retain is not None else []
    gone = read_rows(forget)
    if retain is not None:
        refuse_overlap(gone, kept)
    rows = split_rows([dict(row) for row in gone], [dict(row) for row in kept], seed)
    (folder / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, part in asdict(rows).items():
        text = "".join(json.dumps(_written(row), ensure_ascii=False) + "\n" for row in part)
        if text:
            (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return rows


def _written(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "where"}


def _style_name(model: str, prompt: str) -> str:
    if prompt != "auto":
        return prompt
    from dipo_lightning.models.loading import load_tokenizer

    return "chat" if getattr(load_tokenizer(model), "chat_template", None) else "plain"


def _hidden_size(model: str) -> int:
    from dipo_lightning.models.loading import find_source, load_config

    config = load_config(find_source(model))
    return int(getattr(config.get_text_config(), "hidden_size", WIDTH))


def _say(settings: Settings, rows: SplitRows) -> None:
    print(
        f"{len(rows.forget)} rows to forget, {len(rows.retain)} to keep, {len(rows.held_out)} held out.\n"
        f"Method {settings.method}, lr {settings.lr:g}, {settings.batch_size} forget rows per step, at most "
        f"{settings.epochs} passes, a check every {settings.check_every} steps.",
        flush=True,
    )


def _examined(
    path: Path, model: str, rows: SplitRows, style_name: str, effort: dict[str, int], name: str, accelerator: str
) -> Any:
    """Examine a model once; a second call reads what the first one found."""
    from dipo_lightning.benchmarks.user_data.examination import Examination, ExaminationOptions, examine
    from dipo_lightning.benchmarks.user_data.probes import neighbours
    from dipo_lightning.data.prompts import prompt_style
    from dipo_lightning.evaluation.json_files import write_json
    from dipo_lightning.models.loading import load_tokenizer

    if path.exists():
        return Examination(**json.loads(path.read_text(encoding="utf-8")))
    style = prompt_style(style_name, load_tokenizer(model))
    near = [rows.held_out[i] for i in neighbours(rows.forget, rows.held_out, NEIGHBOURS)]
    found = examine(
        _loaded(model, accelerator),
        style,
        rows.forget,
        rows.retain,
        near,
        ExaminationOptions(**effort),
        progress=lambda what: print(f"{name} model: {what}", flush=True),
    )
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_json(path, asdict(found))
    return found


def _loaded(model: str, accelerator: str) -> Any:
    """The model on the device that the run trains on."""
    import torch

    from dipo_lightning.models.loading import load_policy

    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return load_policy(model).to("cuda" if gpu else "cpu")  # type: ignore[arg-type]


def _paraphrased(
    path: Path, model: str, rows: SplitRows, style_name: str, count: int, seed: int, accelerator: str
) -> SplitRows:
    """The rows with the target's own paraphrases of the forget questions behind theirs; written once."""
    from dipo_lightning.benchmarks.user_data.probes import own_paraphrases
    from dipo_lightning.data.prompts import prompt_style
    from dipo_lightning.evaluation.json_files import write_json
    from dipo_lightning.models.loading import load_tokenizer

    if not path.exists():
        style = prompt_style(style_name, load_tokenizer(model))
        found = own_paraphrases(_loaded(model, accelerator), style, rows.forget, count, seed)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(path, {"paraphrases": found})
    written = json.loads(path.read_text(encoding="utf-8"))["paraphrases"]
    print(f"The target asks {sum(map(len, written))} questions in its own words.", flush=True)
    forget = [
        {**row, "paraphrased_question": [*texts(row.get("paraphrased_question")), *own]}
        for row, own in zip(rows.forget, written, strict=True)
    ]
    return replace(rows, forget=forget)


def texts(given: Any) -> list[str]:
    """Return a text or a list of texts as a list."""
    return [given] if isinstance(given, str) else [str(one) for one in given or []]


def _conclude(
    folder: Path, unlearned: Path, rows: SplitRows, before: Any, after: Any, floors: Any, settings: Settings
) -> None:
    """Judge, write and print."""
    from dipo_lightning.benchmarks.user_data.examination import kept_scores, repeated_share, said_words, value_reports
    from dipo_lightning.benchmarks.user_data.verdict import KEEP, judge, verdict_table, verdict_text
    from dipo_lightning.evaluation.json_files import write_json, write_text
    from dipo_lightning.models.loading import load_tokenizer
    from dipo_lightning.report.page import PAGE
    from dipo_lightning.report.verdict_page import verdict_page

    steps = settings.epochs * math.ceil(len(rows.forget) / settings.batch_size)
    verdict = judge(
        value_reports(before, after, floors),
        kept_scores(before, after),
        words=said_words(before, after, [*rows.forget, *rows.retain, *rows.held_out], load_tokenizer(str(unlearned))),
        repeated=repeated_share(after),
        settings={"lr": settings.lr, "steps": steps},
    )
    document = verdict.document() | {"settings": asdict(settings)}
    write_json(folder / "verdict.json", document)
    facts = {
        "method": settings.method.rpartition(".")[2],
        "rows": f"{len(rows.forget)} to forget, {len(rows.retain)} kept, {len(rows.held_out)} held out",
        "learning rate": f"{settings.lr:g}",
        "forget rows per step": str(settings.batch_size),
        "steps at most": str(steps),
    }
    answers = [
        {"question": row["question"], "answer": row["answer"], "before": old, "after": new}
        for row, old, new in zip(rows.forget, before.greedy, after.greedy, strict=True)
    ]
    write_text(folder / PAGE, verdict_page(document, facts, answers, KEEP))
    card = unlearned / "README.md"
    if card.exists() and "## Verdict" not in card.read_text(encoding="utf-8"):
        text = card.read_text(encoding="utf-8") + f"\n## Verdict\n\n{verdict_text(verdict, private=False)}\n"
        card.write_text(text, encoding="utf-8")
    print(f"\n{verdict_table(verdict)}\n\n{verdict_text(verdict)}\n\nThe unlearned model: {unlearned}")
    print(f"Everything measured: {folder / PAGE} and verdict.json")
