"""MUSE end to end on the made corpus, with the commands and configurations of a user: all six, before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = str(ROOT / "configs" / "muse" / "small.yaml")


def command(folder, *args):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "dipo_lightning", *args], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_small_configuration(tmp_path):
    made = tmp_path / "runs" / "muse-small"
    command(tmp_path, "muse-small")
    command(tmp_path, "fit", "--config", SMALL)
    logs = sorted((made / "unlearned" / "run" / "evaluations").glob("*.json"))
    before, after = (json.loads(path.read_text())["aggregates"] for path in (logs[0], logs[-1]))
    retrained = json.loads((made / "retrained.json").read_text())["aggregates"]
    # The target knows the corpus, the retrained model the part that is kept.
    assert before["verbmem"] > 60
    assert before["knowmem_forget"] > 50
    assert before["knowmem_retain"] > 70
    assert before["privleak"] == pytest.approx(-100)
    assert retrained["knowmem_forget"] < 30
    assert retrained["knowmem_retain"] > 50
    # Unlearning stopped at MUSE's rule, and kept more than it forgot.
    assert after["knowmem_forget"] <= retrained["knowmem_forget"]
    assert after["verbmem"] < before["verbmem"] - 20
    assert after["privleak"] > before["privleak"]
    assert after["knowmem_retain"] > 30
    for kind, part in (("scalability", "scal"), ("sustainability", "sust")):
        parts = json.dumps([f"{part}/forget_1", f"{part}/forget_2"])
        out = made / kind
        command(tmp_path, kind, "--run", SMALL, "--output", str(out), "--parts", parts, "--isolated", "false")
        rows = json.loads((out / "results.json").read_text())["rows"]
        assert len(rows) == 3
        assert all(row["knowmem_forget"] < rows[0]["knowmem_forget"] for row in rows[1:])
        assert (out / "results.png").is_file()
