"""The quickstart ends on one screen: two tables, five questions before and after, and where to look next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dipo_lightning.quickstart.report import answers, attack_table, table, write_report


def log(forget_probability: float, said: str) -> dict[str, Any]:
    row = {"question": "What is Ann's hobby?", "answer": "It is chess.", "generation": said, "rouge_l_recall": 0.8}
    row |= {"nll": 1.0, "correct_nll": 1.5, "wrong_nll": [2.0, 2.5]}
    return {
        "format": "dipo-lightning/tofu/1",
        "settings": {"split": "forget10"},
        "provenance": {"step": 4},
        "sets": {name: [{**row, "index": i} for i in range(16)] for name in ("forget", "retain")},
        "aggregates": {
            "forget_quality": {"p": 0.5, "log10_p": -0.3, "d": 0.1, "n": 16},
            "model_utility": 0.9,
            "forget_probability": forget_probability,
            "forget_rouge": 0.8,
        },
    }


ATTACKED = {
    "settings": {
        "models": ["target", "unlearned"],
        "conditions": [
            {"name": "plain", "title": "plain question", "kind": "answers", "attack": "plain"},
            {"name": "lower", "title": "lower case", "kind": "answers", "attack": "wordings"},
            {"name": "examples", "title": "after examples", "kind": "answers", "attack": "wordings"},
            {"name": "int8", "title": "weights in int8", "kind": "rounded", "attack": "quantization"},
            {"name": "relearn", "title": "relearning", "kind": "curve", "attack": "relearning", "steps": [0, 10]},
        ],
    },
    "aggregates": {
        f"{model}_{name}_probability": number
        for model, numbers in {"target": (1.0, 0.2, 0.7, 1.0, 1.0), "unlearned": (0.4, 0.1, 0.3, 0.5, 0.9)}.items()
        for name, number in zip(("plain", "lower", "examples", "int8", "relearn_step10"), numbers, strict=True)
    },
}


def test_the_worst_wording_and_the_last_step_of_relearning_are_shown() -> None:
    rows = {line[:34].strip(): line[34:].split() for line in attack_table(ATTACKED).splitlines()}
    assert rows["probability of what was forgotten"] == ["target", "unlearned"]
    assert rows["asked plainly"] == ["1.000", "0.400"]
    assert rows["asked in other words, the worst"] == ["0.700", "0.300"]
    assert rows["weights in int8"] == ["1.000", "0.500"]
    assert rows["after 10 steps of relearning"] == ["1.000", "0.900"]


def test_the_truth_is_shown_where_the_model_did_not_know_it() -> None:
    assert "truth" not in answers("forget", log(0.9, "It is chess."), log(0.4, "It is rowing."))
    assert answers("forget", log(0.9, "It is rowing."), log(0.4, "It is rowing.")).count("truth   It is chess.") == 3


def test_numbers_and_rows_that_are_missing_leave_the_others() -> None:
    numbers = ATTACKED["aggregates"] | {"target_plain_probability": None, "unlearned_lower_probability": None}
    rows = {
        line[:34].strip(): line[34:].split() for line in attack_table(ATTACKED | {"aggregates": numbers}).split("\n")
    }
    assert rows["asked plainly"] == ["-", "0.400"]
    assert rows["asked in other words, the worst"] == ["0.700", "0.300"]
    nothing = {"forget_quality": None, "model_utility": None, "forget_probability": 0.5, "forget_rouge": None}
    assert table({"target": nothing}).split()[-6:] == ["target", "-", "-", "-", "0.500", "-"]
    short = log(0.4, "It is rowing.")
    del short["sets"]["forget"][0]
    assert answers("forget", log(0.9, "It is chess."), short).count("after   It is rowing.") == 3


@pytest.mark.parametrize("columns", ["60", "120"])
def test_it_fits_one_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    retain = log(0.45, "It is fishing.")
    retain["sets"]["forget"][3] |= {"correct_nll": None, "wrong_nll": None}  # it cannot be compared
    (tmp_path / "retain.json").write_text(json.dumps(retain), encoding="utf-8")
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, one in zip(files, (log(0.99, "It is chess."), log(0.4, "It is " + "long " * 60)), strict=True):
        file.write_text(json.dumps(one), encoding="utf-8")
    write_report(tmp_path, files, ATTACKED, 12.3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 42, "with the steps, fifty lines"
    said = [line for line in lines if "after   It is" in line]
    assert len(said) == 5
    assert all(len(line) <= int(columns) for line in said)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["unlearned"]["forget_probability"] == 0.4
    assert results["retain"]["forget_quality"] == {"p": 1.0, "log10_p": 0.0, "d": 0.0, "n": 15}
    assert (tmp_path / "forget_quality.png").stat().st_size > 1000
