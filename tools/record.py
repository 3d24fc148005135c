"""Record of what the package computes, to prove that a restructuring changed none of it.

``python tools/record.py record FILE`` trains every method on a toy model and runs every evaluation, and writes the
losses, a hash of the final weights and all numbers. ``python tools/record.py compare FILE`` records again and prints
the differences; ``compare FILE OTHER`` reads a second record instead. The exit code is 1 if anything differs. Losses
and weights are compared bit for bit, so both records must come from one machine with the same libraries.

Only public names of ``dipo_lightning`` are used, with each option spelled as the installed version spells it
(`SPELLINGS`), so one tool serves both sides of a move. ``PYTHONPATH=CHECKOUT`` records another checkout.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import typing
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from transformers.utils.logging import disable_progress_bar

import dipo_lightning  # before the next line: PYTHONPATH may name another checkout

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.record_inputs import method_runs, questions, save_model, user_rows, write, write_muse, write_tofu

SPELLINGS: dict[str, str] = {
    **{f"lora_{name}": f"lora.{name}" for name in ("rank", "alpha", "dropout", "targets")},
    **{name: f"pair.{name}" for name in ("source", "selection", "k", "p", "rho", "memory_vector", "alpha")},
    **{name: f"schedule.{name}" for name in ("every_n_epochs", "every_n_steps", "at_start", "at_end")},
    **{name: f"measuring.{name}" for name in ("max_new_tokens", "generate", "min_k_fraction", "on_missing")},
    **{name: f"max_{name}" for name in ("rows", "forget_rows", "retain_rows")},
    "reference_log": "retain_log",
}
"""New spelling of an option by its old one, which the cases below use; ``outer.inner`` is a field of a dataclass."""

Options = dict[str, Any]
Cases = Iterator[tuple[str, Callable[[], Any]]]

TRUTH_RATIOS = ("geometric", "arithmetic", "open_unlearning")
OPTIMIZER = partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.01)


def make(name: str, *args: Any, **options: Any) -> Any:
    """Build a public class of the package, with each option under its new spelling where the class has that.

    Raises:
        TypeError: The class has an option under neither spelling.
    """
    kind = getattr(dipo_lightning, name)
    known: Options = {}
    for base in kind.__mro__:
        if base.__module__.startswith("dipo_lightning") and "__init__" in vars(base):
            known |= typing.get_type_hints(base.__init__)
    known.pop("return", None)
    chosen: Options = {}
    nested: dict[str, Options] = {}
    for old, value in options.items():
        outer, _, inner = SPELLINGS.get(old, old).partition(".")
        if inner and inner in getattr(options_class(known.get(outer)), "__dataclass_fields__", ()):
            nested.setdefault(outer, {})[inner] = value
        elif outer in known and not inner:
            chosen[outer] = value
        elif old in known:
            chosen[old] = value
        else:
            raise TypeError(f"{name} has no option {old}; it has {', '.join(known)}. Complete SPELLINGS.")
    return kind(*args, **chosen, **{outer: options_class(known[outer])(**inner) for outer, inner in nested.items()})


def options_class(hint: Any) -> Any:
    """Return the dataclass that an annotation names, alone or in a union; None if there is none."""
    return next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)


class Watch(pl.Callback):
    """Collect the loss of every micro-batch, and the terms that the module has logged by then, as exact floats."""

    def __init__(self) -> None:
        self.batches: list[dict[str, str]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add a micro-batch."""
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        self.batches.append({name: float(value).hex() for name, value in {"loss": outputs["loss"], **logged}.items()})


def trainer_in(folder: Path, callback: pl.Callback, **options: Any) -> pl.Trainer:
    """Build a quiet Trainer for the CPU, and fix every seed."""
    pl.seed_everything(0, verbose=False)
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "inference_mode")
    options = {"log_every_n_steps": 1, **dict.fromkeys(names, False), **options}
    return pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, callbacks=[callback], **options)


def train(folder: Path, method: str, options: Options) -> Options:
    """Train for ten optimizer steps (see `method_runs`); return what was logged and a hash of the final weights."""
    options, where, watch = dict(options), Path(tempfile.mkdtemp(dir=folder)), Watch()
    model, trainer = str(folder / options.pop("family", "llama")), options.pop("trainer", {})
    data: Options = {"prompt": "plain", "batch_size": 2} | options.pop("data", {})
    forget, retain = (str(folder / f"{name}.jsonl") for name in ("forget", "retain"))
    if method == "FineTuning":
        rows = make("FineTuningDataModule", model, forget, **data)
    else:
        rows = make("UnlearningDataModule", model, forget, retain, **data)
        options["reference_cache"] = str(where / "cache")
    module = make(f"{method}Module", model, optimizer=OPTIMIZER, **options)
    trainer_in(where, watch, max_steps=10, **trainer).fit(module, rows)
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return {"batches": watch.batches, "weights": weights.hexdigest()}


def methods(folder: Path) -> Cases:
    """Train with every method and every kind of reference, and with DiPO in every form."""
    rows = {"forget": questions("Ada", 5), "retain": questions("Ben", 9)}
    for name in rows:
        write(folder / f"{name}.jsonl", rows[name])
    for family in ("llama", "gemma2"):
        save_model(folder / family, rows["forget"] + rows["retain"], family)
    for name, options in method_runs():
        yield f"{name} {options}", partial(train, folder, name, options)


def evaluate(folder: Path, name: str, model: str, data: Any, /, epochs: int = 0, **options: Any) -> list[Options]:
    """Evaluate a model, or its unlearning over some epochs; return the aggregates and the rows of each evaluation.

    An option ``reference_log`` is the name of a folder beside this one, with the retain model's evaluation.
    """
    if "reference_log" in options:
        options["reference_log"] = str(next((folder.parent / options["reference_log"]).rglob("evaluations/*.json")))
    trainer = trainer_in(folder, make(name, **options), max_epochs=epochs or 1)
    run = trainer.fit if epochs else partial(trainer.test, verbose=False)
    run(make("GradDiffModule", model, optimizer=OPTIMIZER), data())
    logs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("evaluations/*.json"))]
    return [{"aggregates": log["aggregates"], "sets": log["sets"]} for log in logs]


def tofu(folder: Path) -> Cases:
    """Evaluate rows in TOFU's schema, with a holdout set and a retain log."""
    forget, retain = write_tofu(folder / "data")
    kept, target = save_model(folder / "kept", retain, seed=1), save_model(folder / "target", forget + retain)
    data = partial(make, "TOFUDataModule", target, data=str(folder / "data"), prompt="plain", batch_size=2)
    steps: Options = {"epochs": 2, "every_n_epochs": None, "every_n_steps": 2, "at_start": False, "at_end": False}
    small: Options = {"rows": 2, "generate": False, "membership": False, "prompt_style": "chat", "min_k_fraction": 0.2}
    runs = [("every second step", target, steps), ("a few rows", target, small)]
    for ratio in TRUTH_RATIOS:
        runs += [(f"retain {ratio}", kept, {"truth_ratio": ratio})]
        runs += [(ratio, target, {"truth_ratio": ratio, "epochs": 2, "reference_log": f"retain {ratio}"})]
    for name, model, options in runs:
        yield name, partial(evaluate, folder / name, "TOFUEvaluation", model, data, max_new_tokens=16, **options)


def muse(folder: Path) -> Cases:
    """Evaluate a corpus in MUSE's schema, with a retain log and with stated baselines."""
    forget, retain = write_muse(folder / "data")
    kept, target = save_model(folder / "kept", retain, seed=1), save_model(folder / "target", forget + retain)
    data = partial(make, "MUSEDataModule", target, data=str(folder / "data"), max_length=64, batch_size=2)
    runs: list[tuple[str, str, Options]] = [
        ("retain", kept, {"baseline": "none"}),
        ("target", target, {"epochs": 2, "reference_log": "retain"}),
        ("open_unlearning", target, {"baseline": 0.5, "variant": "open_unlearning"}),
        ("a few rows", target, {"baseline": "news", "space": "answer", "min_k_fraction": 0.2, "rows": 3}),
    ]
    for name, model, options in runs:
        options |= {"verbmem_tokens": 24, "knowmem_tokens": 12}
        yield name, partial(evaluate, folder / name, "MUSEEvaluation", model, data, **options)


def user_data(folder: Path) -> Cases:
    """Evaluate a user's own rows of every layout, with and without wrong answers."""
    layouts, retain = user_rows(), questions("Ben", 6, wrong=3)
    model = save_model(folder / "target", layouts["questions"] + retain)
    data = {"retain": write(folder / "retain.jsonl", retain), "prompt": "chat", "batch_size": 2, "max_length": 96}
    runs: list[tuple[str, Options, Options]] = [(name, {}, {"epochs": 1, "text_tokens": 60}) for name in layouts]
    runs += [("questions", {"prompt": "plain"}, {"truth_ratio": ratio}) for ratio in TRUTH_RATIOS]
    runs += [("questions", {"retain": None}, {"forget_rows": 3, "generate": False})]
    runs += [("questions", {}, {"retain_rows": 2, "min_k_fraction": 0.2})]
    for i, (name, own, options) in enumerate(runs):
        file = write(folder / f"{name}.jsonl", layouts[name])
        rows = partial(make, "UnlearningDataModule", model, file, **data | own)
        case = partial(evaluate, folder / str(i), "MemorizationEvaluation", model, rows, max_new_tokens=16, **options)
        yield f"{name} {own | options}", case


def quickstart(folder: Path) -> Cases:
    """Run the quickstart, which takes minutes; the time it took is left out of its results."""

    def run() -> Any:
        path = {"PYTHONPATH": str(Path(dipo_lightning.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dipo_lightning", "quickstart", "--seed", "0", "--output", str(folder / "run")]
        done = subprocess.run(command, cwd=folder, env=os.environ | path, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads((folder / "run" / "results.json").read_text(encoding="utf-8")) | {"seconds": None}

    yield "seed 0", run


PARTS = {part.__name__: part for part in (methods, tofu, muse, user_data, quickstart)}


def record(parts: list[str]) -> Options:
    """Run the cases of the parts; of one that raises, record the class of the error."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    disable_progress_bar()
    torch.set_num_threads(1)  # which makes sums repeatable
    libraries = {name: version(name) for name in ("torch", "transformers", "lightning", "peft")}
    found: Options = {"_made_with": libraries | {"python": platform.python_version(), "machine": platform.platform()}}
    found["_made_with"]["instructions"] = torch.backends.cpu.get_cpu_capability()
    print(f"recording {Path(dipo_lightning.__file__).parent}", flush=True)
    for part in parts:
        started, cases, output = time.monotonic(), found.setdefault(part, {}), io.StringIO()
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(contextlib.redirect_stdout(output))
            stack.enter_context(contextlib.redirect_stderr(output))
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            for name, case in PARTS[part](folder):
                try:
                    cases[name] = case()
                except Exception as error:
                    cases[name] = {"error": type(error).__name__, "_message": str(error)}
        errors = sum("error" in case for case in cases.values())
        print(f"{part}: {len(cases)} cases, {errors} refused, {time.monotonic() - started:.0f} s", flush=True)
    return found


def differences(before: Any, after: Any, where: str) -> Iterator[str]:
    """Name everything that ``after`` lacks or has otherwise; what only ``after`` has doesn't matter.

    Messages for a reader (keys ``_...``, and the reasons under ``..._absent``) are left out.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            if not name.startswith("_") and not name.endswith("_absent"):
                yield from differences(value, after.get(name, after.get("_message", "absent")), f"{where}/{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{where}/{i}")
    elif repr(before) != repr(after):  # exact for floats, and NaN is NaN
        yield f"{where}: {before!r:.100} -> {after!r:.300}"


def main() -> int:
    """Record or compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["record", "compare"])
    parser.add_argument("file", type=Path, help="the record")
    parser.add_argument("other", type=Path, nargs="?", help="a second record to compare with; without it, record now")
    parser.add_argument("--parts", help=f"some of {','.join(PARTS)}; by default all, or all in the record")
    options = parser.parse_args()
    parts = options.parts.split(",") if options.parts else list(PARTS)
    if options.command == "record":
        options.file.write_text(json.dumps(record(parts), indent=1), encoding="utf-8")
        return 0
    before = json.loads(options.file.read_text(encoding="utf-8"))
    parts = [part for part in parts if part in before]
    after = json.loads(options.other.read_text(encoding="utf-8")) if options.other else record(parts)
    if before["_made_with"] != after["_made_with"]:
        print(f"Not made with the same: {before['_made_with']}, {after['_made_with']}")
    differing = 0
    for part in parts:
        for name, case in before[part].items():
            found = list(differences(case, after.get(part, {}).get(name, "absent"), f"{part}/{name}"))
            differing += bool(found)
            for line in found[:5] + [f"... and {len(found) - 5} more in this case"] * (len(found) > 5):
                print(line)
    print(f"{differing} of {sum(len(before[part]) for part in parts)} cases differ in {', '.join(parts)}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
