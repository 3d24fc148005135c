"""Two processes on gloo that stay alive for the whole test session and run one job after the other.

Starting two processes with torch, Lightning and transformers costs eight seconds, a job a tenth of one. A job is a
function of `tests.distributed.jobs` by name, with plain arguments; both processes run it, and both results come back.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import pydoc
import socket
import sys
import tomllib
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WORLD = 2
START_TIMEOUT = 300
"""Seconds that the imports of both processes may take on a machine that has other work; a job's own time is its own."""


class JobFailed(AssertionError):
    """A process did not start, or a job raised on one or did not end in time."""


class Crashed(JobFailed):
    """A process died of a signal."""


class Pool:
    """Two processes that a Trainer takes for its own: started by someone else, under ``LOCAL_RANK``."""

    def __init__(self, logs: Path, world: int = WORLD) -> None:
        self.logs, self.world = logs, world
        self.workers: list[multiprocessing.process.BaseProcess] = []
        self.connections: list[Connection] = []

    def start(self) -> None:
        """Start the processes and wait until each has imported what jobs need."""
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.workers, self.connections = [], []
        for rank in range(self.world):
            here, there = context.Pipe()
            place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            log = self.logs / f"rank{rank}.txt"
            worker = context.Process(target=serve, args=(place, log, there), daemon=True)
            worker.start()
            there.close()
            self.workers.append(worker)
            self.connections.append(here)
        self.answers("start", START_TIMEOUT)

    def run(self, job: str, timeout: float = 120, **arguments: Any) -> list[Any]:
        """Run ``job`` on both processes and return what each returned, by rank.

        It runs once more, in new processes, if one died of a signal: gloo's own thread was seen to crash (torch 2.13),
        once in many sessions. The stacks of all threads are in the log of the process.
        """
        try:
            return self._run(job, timeout, arguments)
        except Crashed as crash:
            print(crash)
            return self._run(job, timeout, arguments)

    def _run(self, job: str, timeout: float, arguments: dict[str, Any]) -> list[Any]:
        if not self.workers:
            self.start()
        for connection in self.connections:
            connection.send((job, arguments))
        return self.answers(f"{job}({arguments})", timeout)

    def answers(self, question: str, timeout: float) -> list[Any]:
        """Wait for what every process has to say to ``question`` and return it by rank."""
        results, errors = [], []
        failure: type[JobFailed] = JobFailed
        for rank, connection in enumerate(self.connections):
            # The other process may wait in a collective for the one that failed: it gets little time after that.
            if not connection.poll(5 if errors else timeout):
                errors.append(f"rank {rank}: no answer")
                continue
            try:
                ok, value = connection.recv()
            except (EOFError, ConnectionResetError):
                self.workers[rank].join()
                code = self.workers[rank].exitcode
                ok, value = False, f"the process died with exit code {code}"
                failure = Crashed if code is not None and code < 0 else failure
            (results if ok else errors).append(value if ok else f"rank {rank}: {value}")
        if errors:
            self.stop()
            output = "\n".join(path.read_text()[-4000:] for path in sorted(self.logs.glob("rank*.txt")))
            raise failure(f"{question}\n" + "\n".join(errors) + f"\n--- output\n{output}")
        return results

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()
        self.workers = []


def serve(place: dict[str, Any], log: Path, connection: Connection) -> None:
    """Say that all is imported, then answer jobs until the other end hangs up.

    Args:
        place: What Lightning reads from the environment.
        log: Where output goes.
        connection: To the pool.
    """
    os.environ.update({name: str(value) for name, value in place.items()})
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    faulthandler.enable(sys.stderr)

    import torch

    from tests.distributed import jobs

    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    connection.send((True, "ready"))
    while True:
        try:
            job, arguments = connection.recv()
        except EOFError:
            break
        try:
            with warnings.catch_warnings():
                filter_warnings()
                connection.send((True, getattr(jobs, job)(**arguments)))
        except Exception:  # whatever a job raises is the test's to report
            connection.send((False, traceback.format_exc()))


def filter_warnings() -> None:
    """Apply pytest's own filters: warnings are errors here too."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    for line in tomllib.loads(pyproject.read_text())["tool"]["pytest"]["ini_options"]["filterwarnings"]:
        action, message, category, *_ = [*line.split(":"), "", ""]
        kind: Any = pydoc.locate(category) if category else Warning
        warnings.filterwarnings(action, message, kind)
