"""Kills a fit at random moments and starts it again until it ends: is the result the uninterrupted run's?

    python -m tests.reliability.kill --trials 20 [--workers 2] [--lora]

Each trial kills one run up to three times with SIGKILL, at a moment drawn from its whole length (start, building of
the cache, steps, evaluations, writing of checkpoints), and compares weights, optimiser, evaluations and event steps.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.reliability.toy_run import differences, outcome, start, warm_up, write_config, write_inputs  # noqa: E402


def killed_after(config: Path, seconds: float) -> bool:
    """Start the run and kill it and its workers after ``seconds``; False if it ended before."""
    process = start(config)
    process.join(seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return True
    if process.exitcode:
        raise RuntimeError(f"the run failed: {config.with_suffix('.log').read_text()[-2000:]}")
    return False


def waiting_for(run: Path, place: str) -> str:
    """Say where a killed run was, from the files that it left."""
    if list(run.glob("checkpoints/*.partial")):
        return "checkpoint"
    if list(run.glob("evaluations/.*")):
        return "evaluation file"
    return (
        place
        if not (run / "checkpoints" / "last.ckpt").exists()
        else f"{len(list(run.glob('evaluations/*.json')))} evaluations"
    )


def trial(
    folder: Path, number: int, window: tuple[float, float], options: dict, kills: int, draw: random.Random
) -> tuple[list[str], Path]:
    """Kill and restart one run; returns where it was killed."""
    run = folder / f"trial{number}"
    config = write_config(folder, run, **options)
    places: list[str] = []
    for _ in range(kills):
        if not killed_after(config, draw.uniform(*window)):
            break
        places.append(waiting_for(run, "before the first checkpoint"))
    while killed_after(config, 600):
        raise RuntimeError("the run does not end")
    return places, run


def trials(folder: Path, count: int, kills: int = 3, seed: int = 0, **options: Any) -> int:
    """Run the uninterrupted fit and every trial, print the table; returns how many were identical."""
    write_inputs(folder)
    warm_up()
    started = time.monotonic()
    killed_after(write_config(folder, folder / "whole", **options), 600)
    length = time.monotonic() - started
    logged = min(path.stat().st_mtime for path in (folder / "whole").rglob("*") if path.is_file())
    first = max(0.0, length - (time.time() - logged))  # what comes before it is the same in every run
    whole, draw, same = outcome(folder / "whole"), random.Random(seed), 0
    print(f"uninterrupted: {length:.1f} s, its first file after {first:.1f} s; {options}")
    for number in range(count):
        places, run = trial(folder, number, (first, length), options, kills, draw)
        odd = differences(whole, outcome(run))
        same += not odd
        verdict = "identical" if not odd else "DIFFERS: " + ", ".join(odd)
        print(f"{number + 1:>3}  killed: {', '.join(places) or '-':<70} {verdict}", flush=True)
    print(f"{same} of {count} identical")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--kills", type=int, default=3, help="most kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {"workers": arguments.workers, "lora": arguments.lora}
        same = trials(Path(folder), arguments.trials, arguments.kills, arguments.seed, **options)
    return int(same != arguments.trials)


if __name__ == "__main__":
    sys.exit(main())
