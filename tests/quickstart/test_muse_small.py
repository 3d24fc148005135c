"""MUSE end to end on the made corpus, with the commands and configurations of a user: all six, before and after.

The six are VerbMem, KnowMem on forget and on retain (utility) and PrivLeak, then utility against the size of what is
forgotten (scalability) and against the number of requests (sustainability).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SMALL = str(ROOT / "configs" / "muse" / "small.yaml")
SEQUENCES = {"scalability": ["scal/forget_2"], "sustainability": ["sust/forget_1", "sust/forget_2"]}
"""The first part alone is what `fit` forgets."""
FEWER = "fewer.yaml"
"""`small.yaml` with five epochs for each step, measured before and after."""


def commands() -> list[list[str]]:
    sequences = [
        [kind, "--run", FEWER, "--output", f"runs/{kind}", "--parts", json.dumps(parts)]
        for kind, parts in SEQUENCES.items()
    ]
    return [["muse-small"], ["fit", "--config", SMALL], *sequences]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output of the four commands, in one process, which imports everything once."""
    folder = tmp_path_factory.mktemp("muse")
    fewer = yaml.safe_load(Path(SMALL).read_text())
    evaluation, _, checkpoint = fewer["trainer"]["callbacks"]  # without the rule, which asks at each epoch
    evaluation["init_args"]["schedule"] = {"every_n_epochs": None}
    fewer["trainer"] |= {"max_epochs": 5, "callbacks": [evaluation, checkpoint]}
    (folder / FEWER).write_text(yaml.safe_dump(fewer))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    code = f"import sys\nfrom dipo_lightning.cli.main import main\nsys.exit(any(map(main, {commands()!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "runs"


def test_the_four_measured_by_a_run(runs):
    logs = sorted((runs / "muse-small" / "unlearned" / "run" / "evaluations").glob("*.json"))
    before, *_, after = found = [json.loads(path.read_text())["aggregates"] for path in logs]
    retrained = json.loads((runs / "muse-small" / "retain.json").read_text())["aggregates"]
    # The target knows the corpus, the retain model the part that is kept.
    assert before["verbmem"] > retrained["verbmem"] + 20
    assert before["knowmem_forget"] > retrained["knowmem_forget"] + 30
    assert before["knowmem_retain"] > 60
    assert before["privleak"] == pytest.approx(-100)
    assert retrained["knowmem_retain"] > 60
    # What is to be forgotten falls, most of the rest is kept, and the run ends at the first epoch of MUSE's rule.
    assert after["verbmem"] < before["verbmem"] - 20
    assert after["knowmem_forget"] < before["knowmem_forget"] / 2
    assert after["knowmem_retain"] > before["knowmem_retain"] / 2
    assert after["privleak"] > before["privleak"]
    reached = [one["knowmem_forget"] <= retrained["knowmem_forget"] for one in found]
    assert not any(reached[:-1])
    assert reached[-1] or len(found) == 11  # ten epochs


@pytest.mark.parametrize("kind", SEQUENCES)
def test_what_larger_and_further_requests_cost(runs, kind):
    rows = json.loads((runs / kind / "results.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["the target", *SEQUENCES[kind]]
    for row in rows[1:]:
        # A mean over 14 questions has a standard error of a tenth: a quarter less is no chance. 0.61 was the highest.
        assert row["knowmem_forget"] < 0.75 * rows[0]["knowmem_forget"]
        assert row["verbmem"] < rows[0]["verbmem"]
        assert 0 < row["knowmem_retain"] < 100
        assert row["privleak"] > rows[0]["privleak"]
    assert (runs / kind / "results.png").read_bytes().startswith(b"\x89PNG")
