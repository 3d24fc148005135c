"""Measurements that all benchmarks share: clocks, peak memory, alternating rounds, ratios with an interval, tables.

Beside the wall time stands the CPU time of this process (or of the measured child process), which other programs on the
machine hardly affect. On a GPU the time is that between two events on its stream, and every clock is read after a
synchronisation.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Measured = dict[str, float]

DEADLINE = [math.inf]
"""Moment of `time.perf_counter` after which `alternate` begins no further round."""
FAILED: dict[str, str] = {}
"""Errors, by the measurement that they ended; they make the exit code 1."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory of a stretch of code in this process, above the memory in use when this object was made.

    On Linux the kernel keeps the high-water mark of resident memory (``VmHWM``), and writing 5 to ``clear_refs`` resets
    it. Free memory of the C allocator is returned to the system first, so that it does not count as in use. Tensors
    above 32 MB are mapped and unmapped one by one, so they are counted exactly; smaller ones to about ten MB. On a GPU
    the number is torch's own account of its allocations.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            ctypes.CDLL(None).malloc_trim(0)
            try:
                _CLEAR.write_text("5")
            except OSError as error:
                print(f"  peak memory is that of the whole process: {error}", flush=True)
            self.before = _resident("VmRSS")

    def rise(self) -> int:
        """Bytes by which the peak so far exceeds the memory at the start."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _resident("VmHWM") - self.before


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@contextmanager
def noted(what: str) -> Iterator[None]:
    """Print an error of a block and keep it in `FAILED`: the other measurements are still worth having."""
    try:
        yield
    except Exception:
        FAILED[what] = traceback.format_exc()
        print(f"{what} FAILED\n{FAILED[what]}", flush=True)


@contextmanager
def timed(device: torch.device) -> Iterator[Measured]:
    """Yield a mapping that gets ``seconds`` (of the device, where it is a GPU), ``wall`` and ``cpu`` at the end."""
    found: Measured = {}
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    if gpu:
        events[1].record()
        torch.cuda.synchronize(device)
    found |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    found["seconds"] = events[0].elapsed_time(events[1]) / 1000 if gpu else found["wall"]


def clock(device: torch.device) -> str:
    """Name the measured number that variants are compared by: CPU seconds on one thread of a CPU, else wall time."""
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "seconds"


def precision(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Return the context in which a forward computes in ``dtype`` over float32 weights."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(child.pid, 0)
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps({"wall": time.perf_counter() - start, "cpu": cpu, "peak_mib": usage.ru_maxrss / 1024}))
sys.exit(os.waitstatus_to_exitcode(status))
"""  # a small process between: a child's peak counts what its parent held when it was started


def run_child(command: Sequence[str], **options: Any) -> Measured:
    """Run a command to its end: ``wall`` and ``cpu`` seconds, and ``peak_mib`` of its largest process.

    Raises:
        RuntimeError: The command failed; the message has the end of its output.
    """
    line = [sys.executable, "-c", _LAUNCHER, *command]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def alternate(
    variants: Mapping[str, Callable[[], Measured]], rounds: int, warmup: int = 1
) -> dict[str, list[Measured]]:
    """Run all variants once per round, each round starting with another one, so that a changing load affects all alike.

    After `DEADLINE` no further round starts, once one has been measured. A variant that fails is left out.

    Returns:
        The measurements of each variant in every round after the first ``warmup`` ones.
    """
    names = list(variants)
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            measured = None
            if name not in FAILED:
                with noted(name):
                    measured = variants[name]()
            if measured is None:
                found.pop(name, None)
                continue
            if number >= warmup:
                found[name].append(measured)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in list(measured.items())[:3])
            print(f"  round {number - warmup + 1}  {name:<32} {shown}", flush=True)
        if number >= warmup and time.perf_counter() > DEADLINE[0]:
            print("  no time for another round", flush=True)
            break
    return found


def medians(rounds: Sequence[Measured]) -> Measured:
    """Return the median of each number over the rounds."""
    return {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}


def ratio(of: Sequence[Measured], over: Sequence[Measured], key: str) -> dict[str, float]:
    """Compare two variants round by round.

    Returns:
        ``ratio``, the median of the rounds' ratios, and ``low`` and ``high``, the smallest and the largest of them. For
        n rounds the median of the distribution lies between these two with probability 1 - 2 ** (1 - n), whatever the
        distribution is.
    """
    ratios = [one[key] / other[key] if other[key] else math.nan for one, other in zip(of, over, strict=True)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


@dataclass
class Table:
    """One table of the report.

    Attributes:
        title: Subject of the measurement.
        rows: Cells by column, in order; a row may leave columns out.
        note: Conditions of the measurement.
        targets: Promised ratios: ``what``, ``ratio``, ``low``, ``high``, and ``limit``, the largest value allowed (the
            smallest, if ``least`` is true).
    """

    title: str
    rows: list[dict[str, Any]]
    note: str = ""
    targets: list[dict[str, Any]] = field(default_factory=list)

    def promise(self, what: str, found: Mapping[str, float], limit: float, least: bool = False) -> None:
        """Add a ratio with its limit."""
        holds = found["ratio"] >= limit if least else found["ratio"] <= limit
        self.targets.append({"what": what, **found, "limit": limit, "least": least, "holds": holds})

    def markdown(self) -> str:
        """Write heading, note, table and promises."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"## {self.title}", "", *([self.note, ""] if self.note else [])]
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in self.rows]
        for one in self.targets:
            sign = "at least" if one["least"] else "at most"
            word = "holds" if one["holds"] else "MISSED"
            span = f" ({one['low']:.3f} to {one['high']:.3f})" if "low" in one else ""
            lines += ["", f"- {one['what']}: {one['ratio']:.3f}{span}, {sign} {one['limit']}: {word}"]
        return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the libraries of this run."""
    import lightning
    import transformers

    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    found: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return found | versions | {"lightning": lightning.__version__, "load": os.getloadavg()[0]}


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []
