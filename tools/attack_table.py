"""Attacks on three methods' unlearned models, the retain model and the target: SmolLM2-135M on TOFU's forget01.

    python tools/attack_table.py --model models/smollm2 --data FOLDER --output FOLDER --accelerator gpu --processes 6
    python tools/attack_table.py --model models/smollm2 --data FOLDER --output FOLDER --smoke

All work is done by ordinary commands, each of which is the first line of its own log. ``fit`` teaches the target and
the retain model (``configs/tofu/smollm2``) and unlearns with each method; ``attack`` first attacks each of the five
models by itself, several at a time, and then each method's model together with the target and the retain model.
Finished results are reused, and a command that fails stops only those that need its result. ``results/`` holds the
table, its numbers (``table.json``), and an archive of every row, picture and log.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dipo_lightning.benchmarks.robustness.tables import PARTS, table_lines

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("DiPO", "NPO", "GradDiff")
OTHERS = ("retain", "target")
SCORES = tuple(f"{letter}_{part}" for letter in "rq" for part in PARTS)
COMMAND = (sys.executable, "-m", "dipo_lightning")
ATTACKS = (
    "--max_new_tokens=80",  # the longest answer has 51 words
    "--relearning.on=[forget,retain,unrelated]",
    "--relearning.max_steps=20",  # 40 rows in batches of 32: step 2 ends the published single epoch
    "--quantization.formats=[int8,nf4,fake_nf4]",
)
SMOKE = ("--max_new_tokens=4", "--relearning.max_steps=2", "--sampling.samples=2", "--sampling.k=[1,2]",
         "--wordings.few_shot=1")  # fmt: skip


@dataclass
class Job:
    """A command, the last file that it writes, and the jobs whose results it needs."""

    name: str
    command: list[str]
    product: Path
    needs: tuple[str, ...] = ()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="SmolLM2-135M: a folder or a GGUF file")
    parser.add_argument("--data", required=True, type=Path, help="folder of TOFU's JSON-lines files")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="commands at the same time")
    parser.add_argument("--smoke", action="store_true", help="four rows of every file, and little of everything")
    return parser.parse_args()


def plan(options: argparse.Namespace, work: Path) -> list[Job]:
    """List all commands, each after those whose results it needs."""
    data = cut(options.data, work / "data") if options.smoke else options.data.resolve()
    device = "cuda" if options.accelerator == "gpu" else "cpu"
    changed = [f"--trainer.accelerator={options.accelerator}", f"--data.data={data}"]
    fewer = {"target": ["--data.max_rows=[4,null]"], "retain": ["--data.max_rows=[4]"]}
    little = ["--trainer.max_epochs=1"] if options.smoke else []
    common = [f"--data={data}", "--split=forget01", "--prompt=chat", f"--device={device}", *ATTACKS]
    common += [f"--unrelated={unrelated_texts(work / 'unrelated.txt')}", *(SMOKE if options.smoke else ())]
    models = {name: work / f"runs/tofu-smollm2/models/{name}" for name in OTHERS}
    jobs = []
    for name in OTHERS:
        line = ["fit", "--config", f"tofu/smollm2/{name}", f"--model.pretrained={options.model.resolve()}", *changed]
        line += [*little, *fewer[name]] if options.smoke else []
        jobs.append(Job(name, line, models[name] / "config.json"))
    for method in METHODS:
        run = work / "unlearned" / method
        models[method] = run / "model"
        line = ["fit", "--config", "tofu/smollm2/unlearn", "--config", str(method_config(method, work)), *changed]
        line += [f"--run={run}", *little, *(["--data.max_retain_rows=4"] if options.smoke else [])]
        jobs.append(Job(method, line, models[method] / "config.json", OTHERS))
    for name, model in models.items():
        folder = work / "alone" / name
        line = ["attack", str(model), *common, f"--output={folder}"]
        jobs.append(Job(f"attack-{name}", line, folder / "robustness.json", (name,)))
    for method in METHODS:
        folder = work / "attacks" / method
        line = ["attack", str(models[method]), *(f"--{name}={models[name]}" for name in OTHERS)]
        needs = tuple(f"attack-{name}" for name in (method, *OTHERS))
        jobs.append(Job(f"table-{method}", [*line, *common, f"--output={folder}"], folder / "robustness.json", needs))
    return jobs


def cut(source: Path, folder: Path) -> Path:
    """Copy the first four rows of every file."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.json"):
        lines = path.read_text(encoding="utf-8").splitlines()[:4]
        (folder / path.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def unrelated_texts(path: Path) -> Path:
    """Write the package's general questions with their answers as texts to relearn on."""
    general = ROOT / "dipo_lightning/benchmarks/user_data/general.json"
    rows = json.loads(general.read_text(encoding="utf-8"))["rows"]
    path.write_text("\n\n".join(f"{row['question']} {row['answer']}" for row in rows) + "\n", encoding="utf-8")
    return path


def method_config(method: str, work: Path) -> Path:
    """Write a method's configuration: its own defaults with the learning rate of ``configs/compare/smollm2.yaml``."""
    model = {
        "class_path": f"dipo_lightning.{method}Module",
        "init_args": {
            "pretrained": "runs/tofu-smollm2/models/target",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5e-5, "weight_decay": 0.01}},
        },
    }
    path = work / f"{method}.yaml"
    path.write_text(json.dumps({"model": model}), encoding="utf-8")
    return path


def reuse(work: Path, method: str) -> None:
    """Copy the results of attacks on single models to the folder of the attack on three, which then reuses them."""
    target = work / "attacks" / method / "parts"
    target.mkdir(parents=True, exist_ok=True)
    for name, role in ((method, "unlearned"), *((name, name) for name in OTHERS)):
        for part in (work / "alone" / name / "parts").glob("*.json"):
            shutil.copy(part, target / f"{role}_{part.name.removeprefix('unlearned_')}")


def run(jobs: list[Job], work: Path, processes: int) -> dict[str, str]:
    """Run the jobs that have no result yet, and return how each one ended."""
    ended: dict[str, str] = {job.name: "there" for job in jobs if job.product.exists()}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    while len(ended) < len(jobs):
        for name, (process, began) in list(running.items()):
            if process.poll() is None:
                continue
            ended[name] = "done" if process.returncode == 0 else f"failed ({process.returncode})"
            print(f"{name}: {ended[name]} after {time.monotonic() - began:.0f} s", flush=True)
            del running[name]
        for job in jobs:
            if job.name in ended or job.name in running:
                continue
            results = [ended.get(name) for name in job.needs]
            if any(result not in (None, "there", "done") for result in results):
                ended[job.name] = "not begun"
            elif None not in results and len(running) < processes:
                if job.name.startswith("table-"):
                    reuse(work, job.name.removeprefix("table-"))
                running[job.name] = start(job, work, environment), time.monotonic()
        time.sleep(0.1)
    return ended


def start(job: Job, work: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    log = work / "logs" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        file.write(f"$ dipo-lightning {' '.join(job.command)}\n".encode())
        file.flush()
        line = [*COMMAND, *job.command]
        return subprocess.Popen(line, cwd=work, env=environment, stdout=file, stderr=subprocess.STDOUT)


def together(work: Path) -> dict[str, Any]:
    """Return one document with the conditions and a column for each method, every number under its method's name."""
    numbers: dict[str, float | None] = {}
    conditions: list[dict[str, Any]] = []
    models = []
    for method in METHODS:
        path = work / "attacks" / method / "robustness.json"
        if not path.exists():
            continue
        document = json.loads(path.read_text(encoding="utf-8"))
        conditions = document["settings"]["conditions"]
        models.append(method)
        for name, value in document["aggregates"].items():
            own = name.removeprefix("unlearned_")
            shared = any(name.startswith(f"{other}_") for other in OTHERS)
            numbers[name if shared else f"{method}_{own}"] = value
    return {"settings": {"models": [*models, *OTHERS], "conditions": conditions}, "aggregates": numbers}


def markdown(document: Mapping[str, Any]) -> str:
    """Return the table of all methods, and of their scores R and Q, as Markdown."""
    models, numbers = document["settings"]["models"], document["aggregates"]
    lines = ["Probability / ROUGE-L recall / extraction strength.", "", f"| attack | {' | '.join(models)} |"]
    lines += [f"|---|{'---|' * len(models)}"]
    lines += [f"| {title} | {' | '.join(cells)} |" for title, cells in table_lines(document)]
    methods = [name for name in models if name not in OTHERS]
    lines += ["", f"| R and Q | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
    for name in dict.fromkeys(name.split("_", 1)[1] for name in numbers if name.endswith(SCORES)):
        cells = (numbers.get(f"{method}_{name}") for method in methods)
        lines.append(f"| {name} | {' | '.join('-' if cell is None else f'{cell:.3f}' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def collect(work: Path, results: Path, ended: Mapping[str, str]) -> None:
    """Write the table, its numbers, and the archive of rows, pictures, evaluations and logs."""
    results.mkdir(parents=True, exist_ok=True)
    document = together(work) | {"jobs": dict(ended)}
    (results / "table.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (results / "table.md").write_text(markdown(document), encoding="utf-8")
    with tarfile.open(results / "everything.tar.gz", "w:gz") as archive:
        for pattern in ("attacks/*/*.*", "unlearned/*/evaluations/*.json", "runs/**/evaluations/*.json", "logs/*.log"):
            for path in sorted(work.glob(pattern)):
                archive.add(path, path.relative_to(work))


def main() -> int:
    options = parse()
    began, work = time.monotonic(), options.output.resolve() / "work"
    work.mkdir(parents=True, exist_ok=True)
    ended = run(plan(options, work), work, options.processes)
    collect(work, options.output / "results", ended)
    print((options.output / "results" / "table.md").read_text(encoding="utf-8"))
    print(f"{ended}\n{time.monotonic() - began:.0f} s")
    return int(any(how not in ("there", "done") for how in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
