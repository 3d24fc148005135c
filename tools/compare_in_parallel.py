"""Run a shipped comparison on the quickstart's data, several methods at a time.

``python tools/compare_in_parallel.py [compare/quickstart] [--jobs 14]`` makes missing bases with the quickstart, runs
each method in a comparison of its own, and then the whole comparison, which finds all runs finished. The same command
resumes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.cli.configs import find_config

COMMAND = [sys.executable, "-m", "dipo_lightning"]


def run(*arguments: str, log: Path | None = None) -> None:
    """Run a command of the package on one thread, with its output in ``log`` if that is given."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = None if log is None else log.open("w")
    subprocess.run([*COMMAND, *arguments], env=environment, stdout=output, stderr=output, check=False)


def make_base(folder: str, seed: int) -> None:
    """Make the quickstart of a seed where it is missing."""
    base = Path(folder.format(seed=seed)).parent
    if not (base / "results.json").is_file():
        base.parent.mkdir(parents=True, exist_ok=True)
        run("quickstart", "--seed", str(seed), "--output", str(base), log=base.with_suffix(".txt"))


def compare_one(plan: dict[str, Any], method: dict[str, Any]) -> None:
    """Run one method of a comparison, and copy its runs to where the whole comparison looks for them."""
    output = Path(plan["output"])
    part = output.with_name(f"{output.name}-{method['name'].replace(' ', '_')}")
    part.parent.mkdir(parents=True, exist_ok=True)
    file = part.with_name(f"{part.name}.yaml")  # "alpha 0.1" has a dot of its own
    file.write_text(yaml.safe_dump(plan | {"methods": [method], "output": str(part)}, sort_keys=False))
    run("compare", str(file), log=part.with_name(f"{part.name}.txt"))
    for kind in ("runs", "selection"):
        for folder in (part / kind).glob("*"):
            shutil.copytree(folder, output / kind / folder.name, dirs_exist_ok=True)


def main(comparison: str, jobs: int) -> None:
    """Make the bases, then run the methods beside one another, then make the table of all."""
    plan = yaml.safe_load(Path(find_config(comparison)).read_text())
    seeds = {*plan["seeds"], *filter(None, [plan.get("selection", {}).get("seed")])}
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(partial(make_base, plan["base"]), sorted(seeds)))
        list(pool.map(partial(compare_one, plan), plan["methods"]))
    run("compare", comparison)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparison", nargs="?", default="compare/quickstart")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    main(arguments.comparison, arguments.jobs)
