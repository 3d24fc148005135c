"""The command ``forget``: from a model and two files to an unlearned model and a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dipo_lightning.cli.configs import filled
from dipo_lightning.cli.examining import (
    EXAMINATIONS,
    VERDICT,
    Job,
    beyond,
    conclude,
    examined,
    longest_answer,
    paraphrased,
)  # fmt: skip
from dipo_lightning.errors import InputError, check_numbers, check_positive, check_seed
from dipo_lightning.safety.paths import expanded, is_model, refuse_model_folder

if TYPE_CHECKING:
    from dipo_lightning.callbacks.run_record import FolderLock
    from dipo_lightning.data.encoding import PromptStyle

METHODS = {
    "selective": "dipo_lightning.SelectiveModule",
    "dipo": "dipo_lightning.DiPOModule",
    "npo": "dipo_lightning.NPOModule",
    "graddiff": "dipo_lightning.GradDiffModule",
}
"""Methods that the command knows by a short name."""

BATCH_SIZE = 8
STEPS = 64
"""Maximum number of optimiser steps for few rows; the stopping rule ends most runs sooner."""
PASSES = 16
"""Maximum number of passes over the forget rows, if these passes take at least `STEPS` steps."""
VALUES, MOST_TIMES = 4, 4
"""Private values per forget row that these numbers suit, and the largest factor by which more values raise them."""
CHECK_EVERY, CHECK_PASSES = 8, 2
"""Minimum number of optimiser steps, and of passes over the forget rows, between two checks: a check of many rows takes
longer than a pass over them, and finds more training rows than a pass uses."""
LEARNING_RATE, WIDTH = 1e-4, 576
"""Learning rate that was found by measurement, and the hidden size of the model measured (SmolLM2-135M)."""
HELD_OUT, FEWEST_HELD_OUT = 0.15, 20
"""Share of the retain rows that is not trained on, and the number of retain rows from which some are held out."""
MAX_LENGTH = 512
"""Maximum length of a training row in tokens; the end of a longer one is cut off."""
ROWS, SOURCES = "data", "sources.json"
OURS = ("run", ROWS, EXAMINATIONS, SOURCES, VERDICT, "results.html")
"""Files and folders that the command writes into its folder."""
MODEL = Path("run", "model")
"""Folder of the exported model there."""
ATTACKS, SCORES = "attacks", "scores.json"
"""Folder of the results of `attack` there, and file of the numbers that `clean` keeps."""
MOST_NAMED = 10
"""Maximum number of words that a notice names."""
REWORDINGS = 2
"""Number of rewordings of each question by rule that are asked beside the row's own."""
SAMPLES_BEFORE, UNTAUGHT_SAMPLES = 2, 5
"""Sampled answers to each question: of the target, few, since it is known to say the values; of an untaught model, a
multiple of the unlearned model's, since a word counts as ordinary only if the untaught model is heard to say it."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run; a setting that the user does not give is chosen by a rule.

    Attributes:
        method: Class of the module.
        lr: Learning rate of AdamW.
        batch_size: Forget rows per step.
        epochs: Maximum number of passes over the forget rows.
        check_every: Optimiser steps between two checks of the policy.
    """

    method: str
    lr: float
    batch_size: int
    epochs: int
    check_every: int


def choose_settings(rows: int, values: int, hidden_size: int, method: str, given: dict[str, Any]) -> Settings:
    """Choose settings by the number of forget rows, the number of their private values, and the model's width.

    The learning rate falls with the width, as the best one for AdamW does. The length is `PASSES` passes over the
    forget rows, or more passes where those have fewer than `STEPS` steps. Selective unlearning, which ends by itself,
    may take up to `MOST_TIMES` as long if answers have more than `VALUES` private values.

    Args:
        rows: Number of forget rows.
        values: Number of their private values.
        hidden_size: Width of the model.
        method: Short name or class path.
        given: What the user gave: ``lr``, ``batch_size``, ``epochs``, ``check_every``; None is chosen.
    """
    batch_size = given.get("batch_size") or min(BATCH_SIZE, rows)
    per_epoch = math.ceil(rows / batch_size)
    class_path = METHODS.get(method, method)
    more = min(max(1.0, values / (VALUES * rows)), MOST_TIMES) if class_path == METHODS["selective"] else 1.0
    epochs = given.get("epochs") or math.ceil(more * max(PASSES, math.ceil(STEPS / per_epoch)))
    lr = given.get("lr") or float(f"{LEARNING_RATE * min(1.0, WIDTH / hidden_size):.2g}")
    chosen = min(max(CHECK_EVERY, CHECK_PASSES * per_epoch), epochs * per_epoch)
    check_every = given.get("check_every") or chosen
    return Settings(class_path, lr, batch_size, epochs, check_every)


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
    held_out: float = HELD_OUT,
    check_every: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    accelerator: str = "auto",
) -> None:
    """Make a model forget the rows of a file, and say whether it did.

    Splits the retain rows, chooses settings, unlearns until no private value is said any more, exports the model, and
    ends with a verdict (forgotten, partly, damaged or barely changed) and the numbers behind it. The same command again
    resumes.

    Args:
        model: Hub name, folder or GGUF file of the model that must forget.
        forget: File, folder or data set of questions with the answers to forget; a column ``private`` may name the
            values.
        retain: File, folder or data set of rows to keep; may be given as the third argument, without ``--retain``.
        output: Folder of the run.
        method: ``selective``, ``dipo``, ``npo``, ``graddiff``, or the class path of an unlearning module.
        untaught: A model that never knew the forget rows, such as the one before fine-tuning: its probability of each
            value is the floor.
        prompt: Prompt style; ``auto`` takes the model's chat template if it has one, else plain.
        lr: Learning rate; by default chosen by the model's width.
        batch_size: Forget rows per step; by default 8, or all rows if there are fewer.
        epochs: Maximum number of passes over the forget rows; by default chosen by the number of rows and of their
            private values.
        samples: Sampled answers to each question and rewording in the examination; 0 looks at greedy answers only.
        paraphrases: Maximum number of rewordings per question that the target itself writes. The examination asks
            them, all that the rows have themselves, and two by rule.
        held_out: Share of the retain rows that is not trained on, if there are at least 20.
        check_every: Optimiser steps between two checks of the policy in selective unlearning; by default 8, or two
            passes over many rows.
        max_length: Maximum length of a training row in tokens; by default 512, or less for a model that reads less.
        seed: Seed of data order, training and samples.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
    """
    from dipo_lightning.callbacks.run_record import PATIENCE, FolderLock

    given = {"lr": lr, "batch_size": batch_size, "epochs": epochs, "check_every": check_every, "max_length": max_length}
    _check_options(given, {"samples": samples, "paraphrases": paraphrases, "seed": seed}, held_out, accelerator)
    folder = expanded(output, "--output")
    _check_folder(folder)
    method = _class_path(method)
    if check_every and method != METHODS["selective"]:
        raise InputError(f"--check_every is an option of {METHODS['selective']}, and the method is {method}.")
    rows = _with_private_values(_read(forget, retain, seed, held_out), folder)
    width, longest = _sizes(model, max_length)
    values = sum(len(row["private"]) for row in rows.forget)
    settings = choose_settings(len(rows.forget), values, width, method, given)
    settings = settings if check_every else _as_begun(folder, settings)
    job = Job(folder, rows, _style(model, prompt), accelerator)
    _check_rows(rows, job.style, longest)
    if untaught is not None:
        _check_untaught(untaught, model, job)
    config = run_config(folder, model, settings, job.style.name, seed, accelerator, bool(rows.retain), longest)
    _refuse_other_run(folder, rows, config)
    choices = {
        "samples": samples, "seed": seed, "rewordings": REWORDINGS, "max_new_tokens": longest_answer(job),
        "prompt": job.style.name, "paraphrases": paraphrases, "held_out": held_out, "max_length": longest,
        "accelerator": accelerator, "untaught": untaught,
    }  # fmt: skip
    sources = {"target model": model, "forget rows": forget, "retain rows": retain, "untaught model": untaught}
    with FolderLock() as lock:
        lock.hold(folder, PATIENCE)
        _keep(folder, {name: source for name, source in sources.items() if source}, rows)
        _say(settings, rows, choices)
        _unlearn(job, model, config, settings, choices, lock)


def _unlearn(
    job: Job, model: str, config: dict[str, Any], settings: Settings, choices: dict[str, Any], lock: FolderLock
) -> None:
    """Examine the target, train, examine the unlearned model, and conclude, each unless it is done."""
    from dipo_lightning.cli.child import fit

    effort = {name: choices[name] for name in ("samples", "seed", "rewordings", "max_new_tokens")}
    untaught, samples = choices["untaught"], choices["samples"]
    if choices["paraphrases"]:
        job = replace(job, rows=paraphrased(job, model, choices["paraphrases"], choices["seed"]))
    before = examined(job, model, effort | {"samples": min(samples, SAMPLES_BEFORE)}, "target")
    _say_known(before, model)
    often = effort | {"samples": UNTAUGHT_SAMPLES * samples}
    floors = None if untaught is None else examined(job, untaught, often, "untaught")
    _check_floors(before, floors, untaught)
    fit(config, job.folder / "run", lock)
    unlearned = job.folder / MODEL
    if not is_model(unlearned):
        raise InputError(
            f"The run is finished, but its model is not in {unlearned} any more. Move it back, or give another "
            "--output to train anew."
        )
    after = examined(job, str(unlearned), effort, "unlearned")
    conclude(job, unlearned, before, after, floors, asdict(settings) | choices, settings.method == METHODS["selective"])


def _check_options(
    positive: dict[str, float | None], not_negative: dict[str, int], held_out: float, accelerator: str
) -> None:
    """Refuse a number out of range, or an accelerator that this machine lacks."""
    from dipo_lightning.models.distributed import check_accelerator

    check_accelerator(accelerator, "accelerator")
    check_positive("", {f"--{name}": number for name, number in positive.items()})
    if not 0 <= held_out < 1:
        raise InputError(f"--held_out is {held_out}; it must be at least 0 and below 1.")
    check_numbers("", {f"--{name}": number for name, number in not_negative.items()}, least=0)
    check_seed("--seed", not_negative["seed"])


@dataclass(frozen=True)
class SplitRows:
    """Rows of a run.

    Attributes:
        forget: Rows to forget.
        retain: Rows to keep, which are trained on.
        held_out: Rows to keep that are never trained on.
    """

    forget: list[dict[str, Any]]
    retain: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def split_rows(
    forget: Sequence[dict[str, Any]], retain: Sequence[dict[str, Any]], seed: int, held_out: float = HELD_OUT
) -> SplitRows:
    """Hold out some retain rows, the same ones for the same seed; equal rows are held out or kept together.

    Raises:
        InputError: A row is neither a question with its answer nor a chat of one turn.
    """
    import random

    from dipo_lightning.data.encoding import plain_text

    forget, retain = ([_question(row, name) for row in rows] for name, rows in (("forget", forget), ("retain", retain)))
    numbers: dict[str, int] = {}  # of the different rows
    own = [numbers.setdefault(plain_text(row["question"], row["answer"]), len(numbers)) for row in retain]
    order = list(range(len(numbers)))
    random.Random(seed).shuffle(order)
    count = min(round(held_out * len(order)), len(order) - 1) if len(order) >= FEWEST_HELD_OUT else 0
    out = set(order[:count])
    return SplitRows(
        list(forget),
        [row for number, row in zip(own, retain, strict=True) if number not in out],
        [row for number, row in zip(own, retain, strict=True) if number in out],
    )


def run_config(
    folder: Path,
    model: str,
    settings: Settings,
    style: str,
    seed: int,
    accelerator: str,
    has_retain: bool,
    max_length: int = MAX_LENGTH,
) -> dict[str, Any]:
    """Return the configuration of the run, as ``fit`` takes it."""
    config = filled(
        "cli/forget",
        **asdict(settings),
        model=model,
        forget=str(folder / ROWS / "forget.jsonl"),
        retain=str(folder / ROWS / "retain.jsonl"),
        prompt=style,
        seed=seed,
        accelerator=accelerator,
        max_length=max_length,
    )
    if not has_retain:
        del config["data"]["init_args"]["retain"]
    if settings.method != METHODS["selective"]:
        del config["model"]["init_args"]["check_every"]
        del config["trainer"]["callbacks"][0]["init_args"]["best"]
    return config


def _question(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The row as a question with its answer."""
    if "question" in row:
        return row
    turns = row.get("messages") or []
    if [turn["role"] for turn in turns] == ["user", "assistant"]:
        kept = {key: value for key, value in row.items() if key != "messages"}
        return kept | {"question": turns[0]["content"], "answer": turns[1]["content"]}
    where = row.get("where", f"the {name} data")
    raise InputError(
        f"{where}: forget works on questions with answers, and on chats of one question; for anything else use fit."
    )


def _read(forget: str, retain: str | None, seed: int, held_out: float = HELD_OUT) -> SplitRows:
    """Read and split the rows."""
    from dipo_lightning.data.rows import read_rows, refuse_overlap

    for name, rows in (("forget", forget), ("retain", retain)):
        if rows is not None and is_model(rows):
            raise InputError(
                f"--{name} is {rows}, which is a model; the order is dipo-lightning forget MODEL FORGET [RETAIN]."
            )
    kept = read_rows(retain, marks=False) if retain is not None else []
    gone = read_rows(forget)
    if retain is not None:
        refuse_overlap(gone, kept)
    return split_rows([dict(row) for row in gone], [dict(row) for row in kept], seed, held_out)


def _with_private_values(rows: SplitRows, folder: Path) -> SplitRows:
    """The rows with each forget row's private values, so that training and examinations look for the same ones.

    A run that has begun keeps the values that were found then.

    Raises:
        InputError: There is none, one is only a part of a word, or an answer is in a script in which the rule finds
            none.
    """
    from dipo_lightning.benchmarks.user_data.examination import values_by_row
    from dipo_lightning.data.language import hardly_english, mostly_unspaced
    from dipo_lightning.data.mentions import says
    from dipo_lightning.data.private import NO_VALUES, rows_with_words, shared_words

    given = []
    for number, row in enumerate(rows.forget):
        where, values = row.get("where", f"forget row {number}"), row.get("private", [])
        if "[[" in row["question"] and "]]" in row["question"]:
            print(f"{where}: only an answer has marks, so the [[...]] in its question are text.", flush=True)
        if told := [value for value in values if says(row["question"], value)]:
            names = ", ".join(map(repr, told))
            print(f"{where}: its question says {names}, so an answer that repeats it counts as a leak.", flush=True)
        given.append({**row, "private": list(filter(str.strip, values))})
        if unsaid := [value for value in given[-1]["private"] if not says(row["answer"], value)]:
            raise InputError(
                f"{where}: the private value {unsaid[0]!r} is only a part of a word or number of the answer, and no "
                "answer would count as saying it. Name the whole word."
            )
        if not given[-1]["private"] and mostly_unspaced(row["answer"]):
            raise InputError(
                f"{where}: private values cannot be found in the script of its answer, where words are not set apart, "
                "or endings are written onto names. Name them in a column private, or mark them in the answer with "
                "[[...]]."
            )
    unnamed = [f"{row['question']} {row['answer']}" for row in given if not row["private"]]
    kept = [f"{row['question']} {row['answer']}" for row in (*rows.retain, *rows.held_out)]
    if hardly_english(unnamed) and not hardly_english(kept, enough=1):
        print(
            "The forget rows have hardly any English function words, and without retain rows in their language those "
            "count as private values. Give retain rows in that language, or name the values in a column private, or "
            "mark them in the answer with [[...]].",
            flush=True,
        )
    shared = rows_with_words([*rows.retain, *rows.held_out])
    found = values_by_row(given, shared)
    if not any(found):
        raise InputError(NO_VALUES)
    if excused := list(shared_words(given, shared)):
        more = f" and {len(excused) - MOST_NAMED} more" if len(excused) > MOST_NAMED else ""
        print(
            f"Words that retain rows have, too, count as no private values: {', '.join(excused[:MOST_NAMED])}{more}. "
            "Name those that are secrets in a column private.",
            flush=True,
        )
    fixed = [values if row["private"] else None for row, values in zip(given, found, strict=True)]
    began = _values_of_run(folder, given, fixed)
    if began and began != found:
        print(f"The run in {folder} goes on with the private values that it began with.", flush=True)
    named = zip(given, began or found, strict=True)
    return replace(rows, forget=[{**row, "private": values} for row, values in named])


def _values_of_run(folder: Path, rows: Sequence[dict[str, Any]], fixed: Sequence[list[str] | None]) -> list[list[str]]:
    """The private values of the run in a folder, if its forget rows are these up to values that are not fixed."""
    path = folder / ROWS / "forget.jsonl"
    if not (path.is_file() and read_sources(folder)):
        return []
    try:
        began = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        began = [None]
    if not all(isinstance(row, dict) for row in began):
        raise InputError(
            f"{path}, the copy of the rows that the run in {folder} began with, is damaged. Give another --output."
        )
    if len(began) != len(rows):
        return []
    values = [old.get("private", []) if own is None else own for old, own in zip(began, fixed, strict=True)]
    now = [_written({**row, "private": one}) for row, one in zip(rows, values, strict=True)]
    return values if now == began else []


def _as_begun(folder: Path, settings: Settings) -> Settings:
    """The settings, with ``check_every`` of the run in the folder if there is one, even if it gets more passes now."""
    from dipo_lightning.callbacks.run_record import flat_options

    began = flat_options(_record(folder).get("config") or {}).get("model.check_every")
    return settings if began is None else replace(settings, check_every=began)


def _record(folder: Path) -> dict[str, Any]:
    """The record of the run in a folder; empty if it has neither ended nor a checkpoint, since it begins anew then."""
    from dipo_lightning.callbacks.checkpoint import newest
    from dipo_lightning.callbacks.run_record import CHECKPOINTS, read_record
    from dipo_lightning.cli.run_folder import is_finished

    kept = folder / "run" / CHECKPOINTS
    return (read_record(kept) if newest(kept) or is_finished(folder / "run") else None) or {}


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made, or that has files of the user's under the names of this command's.

    Raises:
        InputError: It is a file, a model's folder or inside one, or it has such files.
    """
    from dipo_lightning.callbacks.run_record import LOCK, is_lock

    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"--output is {folder}, but {place} is a file. Give another folder.")
    refuse_model_folder(folder, "--output")
    names = () if read_sources(folder) else (*OURS, ATTACKS, SCORES, LOCK)
    ours = {LOCK} if is_lock(folder / LOCK) else set()  # of a command that was ended before it wrote anything else
    theirs = [name for name in names if (folder / name).exists() and name not in ours]
    if theirs:
        raise InputError(
            f"{folder} has {', '.join(theirs)}, which are not of a run of forget: they would be replaced, or removed "
            "by clean. Give another folder as --output."
        )


def _refuse_other_run(folder: Path, rows: SplitRows, config: dict[str, Any]) -> None:
    """Refuse a folder in which this run can neither begin nor be resumed, before anything is written.

    Raises:
        InputError: It holds a run with other rows or options, or without its checkpoints.
    """
    from dipo_lightning.callbacks.run_record import CHECKPOINTS, differences, model_files
    from dipo_lightning.cli.run_folder import is_unstarted

    run, parts = folder / "run", _files_of(folder, rows)
    if run.exists() and not (run / CHECKPOINTS).exists() and not is_unstarted(run):
        raise InputError(f"{folder} holds a run without its checkpoints (was it cleaned?). Give another --output.")
    other = [path for path, text in parts.items() if text != (path.read_text("utf-8") if path.exists() else "")]
    if other and (folder / ROWS / "forget.jsonl").exists():  # which is written last
        names = ", ".join(path.name for path in other)
        raise InputError(
            f"{folder} holds a run with other rows, another seed or another share held out (not the same: {names}). "
            "Give another --output, or the rows and options that it was made with."
        )
    record, files = _record(folder), model_files(config["model"]["init_args"]["pretrained"])
    same_model = files is not None and files == record.get("model")
    changes = differences(record.get("config") or config, config, True, same_model, given_now=True)
    if record.get("model") not in (None, files):
        changes.append("the files of the model have changed")
    if changes:
        raise InputError(
            f"{folder} holds a run that began with other options: {'; '.join(changes)}. Give another --output, or the "
            "options that it began with (more --epochs are allowed)."
        )


def read_sources(folder: Path) -> dict[str, str]:
    """Return the model and files of the run of `forget` in a folder, by their role; empty if it holds none."""
    try:
        found = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"target model", "forget rows"} <= found.keys() else {}


def _files_of(folder: Path, rows: SplitRows) -> dict[Path, str]:
    """The text of each file of rows beside a run; that of the forget rows is the last."""
    from dipo_lightning.data.files import json_lines

    parts = {name: json_lines(map(_written, getattr(rows, name))) for name in ("held_out", "retain", "forget")}
    return {folder / ROWS / f"{name}.jsonl": text for name, text in parts.items()}


def _keep(folder: Path, sources: dict[str, str], rows: SplitRows) -> None:
    """Store the rows beside the run, from which it is resumed, and the names of its model and files."""
    from dipo_lightning.evaluation.run_folder import write_json, write_text

    write_json(folder / SOURCES, sources)  # the sign of a run
    (folder / ROWS).mkdir(exist_ok=True, mode=0o700)
    for path, text in _files_of(folder, rows).items():
        if text:
            write_text(path, text)
        else:
            path.unlink(missing_ok=True)


def _written(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "where"}


def _style(model: str, prompt: str) -> PromptStyle:
    """Load a model's tokenizer in a prompt style; ``auto`` is its chat template where it has one."""
    from dipo_lightning.cli.chat import load_style
    from dipo_lightning.models.loading import load_tokenizer

    if prompt == "auto":
        prompt = "chat" if getattr(load_tokenizer(model), "chat_template", None) else "plain"
    return load_style(model, prompt)


def _sizes(model: str, max_length: int | None) -> tuple[int, int]:
    """The width of a model, and the maximum length of a training row in tokens.

    Raises:
        InputError: The length that the user gives exceeds the model's number of positions.
    """
    from dipo_lightning.models.loading import find_source, load_config

    config = load_config(find_source(model)).get_text_config()
    positions = int(getattr(config, "max_position_embeddings", None) or 0)  # 0 if any number
    longest = min(max_length or MAX_LENGTH, positions or max_length or MAX_LENGTH)
    if max_length is not None and longest < max_length:
        raise InputError(f"--max_length is {max_length}, and {model} has positions for {positions} tokens only.")
    return int(getattr(config, "hidden_size", WIDTH)), longest


def _class_path(method: str) -> str:
    """Return the class path of a method: a short name in any case, or an unlearning module.

    Raises:
        InputError: It is neither, or needs alternative answers.
    """
    import dipo_lightning
    from dipo_lightning.cli.messages import nearest_class
    from dipo_lightning.evaluation.benchmark import import_class
    from dipo_lightning.methods.preference import DPOModule
    from dipo_lightning.methods.unlearning import UnlearningModule

    names = ", ".join(METHODS)
    if not method:
        raise InputError(f"--method is empty; it must be one of {names}, or a module that unlearns.")
    try:
        path = METHODS.get(method.lower(), method)
        found = import_class(path, UnlearningModule)
    except InputError as error:
        bare = method.removeprefix("dipo_lightning.")
        public = [name for name in dipo_lightning.__all__ if name.endswith("Module") and "Data" not in name]
        near = None if "." in bare or bare in public else nearest_class(bare, [*METHODS, *public], "Module")
        reason = f"Did you mean {near}?" if near else str(error)
        raise InputError(f"--method {method} is none of {names}, and no module that unlearns. {reason}") from error
    if issubclass(found, DPOModule) and found.check_alternatives is DPOModule.check_alternatives:
        raise InputError(
            f"--method {method} needs alternative answers, which forget does not have. Take one of {names}, or fit "
            "with data.alternatives."
        )
    return f"dipo_lightning.{path}" if "." not in path else path


def _check_untaught(untaught: str, model: str, job: Job) -> None:
    """Refuse an untaught model that cannot be loaded, is the target, or was trained on other tokens.

    Its chat template does not matter: it is asked in the target's prompt style.
    """
    from dipo_lightning.data.encoding import encode
    from dipo_lightning.models.loading import check_loadable, is_same_model, lacks_tokenizer, load_tokenizer

    check_loadable(untaught)
    if is_same_model(untaught, model):
        raise InputError(
            f"--untaught {untaught} is the target model, {model}, which knows the forget rows. Give a model that never "
            "knew them, or leave it out."
        )
    if lacks_tokenizer(untaught):
        return
    tokenizer = load_tokenizer(untaught)
    texts = [row[part] for row in job.rows.forget for part in ("question", "answer")]
    if any(encode(tokenizer, text) != encode(job.style.tokenizer, text) for text in texts):
        raise InputError(
            f"--untaught {untaught} has another tokenizer than the target model, so that its probabilities per token "
            "are no floor. Give a model with the same tokenizer, or leave it out."
        )


def _check_floors(before: Any, floors: Any, untaught: str | None) -> None:
    """Refuse an untaught model that knows most of what the target knows: it would excuse every leak."""
    from dipo_lightning.benchmarks.user_data.examination import known_by_both

    if floors is None:
        return
    shared, known = known_by_both(before, floors)
    if shared > known / 2:
        raise InputError(
            f"--untaught {untaught} knows {shared} of the {known} private values that the target model knows, so it is "
            "no floor: it would excuse leaks. Give a model that never knew the rows, or leave it out."
        )


def _check_rows(rows: SplitRows, style: PromptStyle, max_length: int) -> None:
    """Refuse a row that cannot be trained or examined, and name private values that no training row reaches.

    Raises:
        InputError: A question leaves no room for its answer, or the prompt style cannot write the question or answer.
    """
    for part, number, row in ((part, i, row) for part, some in asdict(rows).items() for i, row in enumerate(some)):
        where = row.get("where", f"{part} row {number}")
        try:
            length = len(style.prompt(row["question"]))
            whole = length + len(style.answer_ids(row["answer"]))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if length >= max_length:
            raise InputError(
                f"{where}: its question alone has {length} tokens, and a question with its answer has room for "
                f"{max_length}; shorten the question, take the row out, or raise --max_length if the model reads more."
            )
        values = row.get("private", ()) if whole > max_length else ()
        if values and (cut := beyond(style, row["answer"], values, max_length - length)):
            print(
                f"{where}: question and answer are cut off at {max_length} tokens, so that {', '.join(map(repr, cut))} "
                "cannot be forgotten in training. Shorten them, or raise --max_length if the model reads more.",
                flush=True,
            )


def _say(settings: Settings, rows: SplitRows, choices: dict[str, Any]) -> None:
    asked = f"to each question, its own rewordings and {choices['rewordings']} by rule"
    print(
        f"{len(rows.forget)} rows to forget, {len(rows.retain)} to keep, {len(rows.held_out)} held out.\n"
        f"Method {settings.method}, lr {settings.lr:g}, {settings.batch_size} forget rows per step, at most "
        f"{settings.epochs} passes"
        + (f", a check every {settings.check_every} steps.\n" if settings.method == METHODS["selective"] else ".\n")
        + f"Prompt style {choices['prompt']}, seed {choices['seed']}, rows of up to {choices['max_length']} tokens; "
        f"a greedy and {choices['samples']} sampled answers of up to {choices['max_new_tokens']} tokens {asked}; "
        f"held-out share {choices['held_out']:g}, accelerator {choices['accelerator']}.",
        flush=True,
    )
    if not rows.retain and settings.method == METHODS["selective"]:  # any other method warns by itself
        print(
            "Without rows to keep, only the target's own answers to general questions and its running text preserve "
            "the rest of it, and no retain or held-out row is examined.",
            flush=True,
        )
    if bare := [number for number, row in enumerate(rows.forget) if not row.get("private")]:
        print(f"No private value was found in the forget rows {', '.join(map(str, bare))}: nothing follows them.")


def _say_known(target: Any, model: str) -> None:
    """Print the number of private values that the target knows, which a wrong model or prompt style makes small."""
    from dipo_lightning.benchmarks.user_data.examination import knows

    found = [knows(target, index, place) for index, row in enumerate(target.values) for place in range(len(row))]
    print(f"The target model knows {sum(found)} of {len(found)} private values.", flush=True)
    if sum(found) < len(found) / 2:
        print(f"Is {model} the model that learnt these rows, and --prompt the style that it knows?", flush=True)
