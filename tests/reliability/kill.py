"""Kills a fit with SIGKILL and starts it again until it ends: is the result the uninterrupted run's, bit for bit?

    python -m tests.reliability.kill --trials 20

The first kill of a trial is at a random visit to one place (while the cache is built, between forward and backward,
after an optimiser step, in an evaluation, while its file is written, while a checkpoint is written, after it is
renamed), each place in turn; the next ones are at random moments. Trials alternate between 0 and 2 loader workers, all
weights and LoRA with dropout; all accumulate gradients. Compared are weights, optimiser states, every results file
(all but its wall-clock times and its paths) and every TensorBoard scalar with its step.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.reliability.toy_run import differences, outcome, start, warm_up, write_config, write_inputs
from tests.reliability.traps import PLACES

COMBINATIONS = ((0, False), (2, True), (0, True), (2, False))
"""Loader workers, and whether LoRA with dropout is trained."""


@dataclass(frozen=True)
class Whole:
    """The uninterrupted run.

    Attributes:
        outcome: What it ended with.
        window: Seconds after a start between which a random kill falls.
    """

    outcome: dict[str, Any]
    window: tuple[float, float]


def killed_after(config: Path, seconds: float, trap: tuple[str, int] | None = None) -> bool:
    """Start the run and kill it and its workers after ``seconds``, or where the trap is; False if it ended before.

    Raises:
        RuntimeError: The run failed.
    """
    process = start(config, trap)
    process.join(seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return True
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run failed: {config.with_suffix('.log').read_text()[-2000:]}")
    return process.exitcode != 0


def uninterrupted(folder: Path, lora: bool, epochs: int) -> Whole:
    """Run to the end without a kill, without loader workers."""
    run, started = folder / f"whole-{lora}", time.time()
    if killed_after(write_config(folder, run, lora=lora, epochs=epochs), 600):
        raise RuntimeError("the uninterrupted run does not end")
    first = min(path.stat().st_mtime for path in run.rglob("*") if path.is_file())
    return Whole(outcome(run), (max(0.0, first - started), time.time() - started))


def trial(config: Path, place: str, whole: Whole, kills: int, draw: random.Random) -> list[str]:
    """Kill one run at a place, then at random moments, and let it come to its end; returns where it was killed."""
    places: list[str] = []
    for number in range(kills):
        if number == 0:
            trap = place, draw.randint(1, PLACES[place])
            killed, where = killed_after(config, 600, trap), f"{place} ({trap[1]})"
        else:
            seconds = draw.uniform(*whole.window)
            killed, where = killed_after(config, seconds), f"after {seconds:.1f} s"
        if not killed:
            break
        places.append(where)
    if killed_after(config, 600):
        raise RuntimeError("the run does not end")
    return places


def trials(
    folder: Path,
    count: int,
    kills: int = 3,
    seed: int = 0,
    epochs: int = 3,
    combinations: tuple[tuple[int, bool], ...] = COMBINATIONS,
) -> int:
    """Run the uninterrupted fits and every trial, print the table; returns how many were identical."""
    write_inputs(folder)
    warm_up()
    wholes = {lora: uninterrupted(folder, lora, epochs) for lora in sorted({lora for _, lora in combinations})}
    draw, same, places = random.Random(seed), 0, list(PLACES)
    print(f"{'trial':>5}  {'workers':>7}  {'trained':<8}  {'killed':<72}  result")
    for number in range(count):
        workers, lora = combinations[number % len(combinations)]
        run, whole = folder / f"trial{number}", wholes[lora]
        config = write_config(folder, run, workers=workers, lora=lora, epochs=epochs)
        killed = trial(config, places[number % len(places)], whole, kills, draw)
        odd = differences(whole.outcome, outcome(run))
        same += bool(killed) and not odd
        verdict = "identical" if killed and not odd else "DIFFERS: " + ", ".join(odd or ["never killed"])
        print(f"{number + 1:>5}  {workers:>7}  {'LoRA' if lora else 'weights':<8}  {', '.join(killed):<72}  {verdict}",
              flush=True)  # fmt: skip
    print(f"{same} of {count} identical")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="most kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        same = trials(Path(folder), arguments.trials, arguments.kills, arguments.seed)
    return int(same != arguments.trials)


if __name__ == "__main__":
    sys.exit(main())
