"""End of the quickstart: a table, answers before and after, a picture, and a list of what lies where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dipo_lightning.evaluation.json_files import write_json
from dipo_lightning.report.run_picture import headline_picture
from dipo_lightning.safety.text import printable

SHOWN = {"forget": 3, "retain": 2}
"""Questions that are printed of each set."""


def write_report(folder: Path, evaluations: list[Path], seconds: float) -> None:
    """Write ``results.json`` and the picture, and print the table, some answers and the paths.

    Args:
        folder: The quickstart's folder.
        evaluations: Logs of the unlearning run; the first is the target's, the last the unlearned model's.
        seconds: How long all of it took.
    """
    logs = [json.loads(path.read_text(encoding="utf-8")) for path in evaluations]
    retain = json.loads((folder / "retain.json").read_text(encoding="utf-8"))
    models = {"target": logs[0], "unlearned": logs[-1], "retain": retain}
    results = {name: summary(log) for name, log in models.items()}
    rows = len(retain["sets"]["forget"])
    results["retain"]["forget_quality"] = {"p": 1.0, "log10_p": 0.0, "d": 0.0, "n": rows}  # against itself
    write_json(folder / "results.json", {**results, "seconds": round(seconds, 1)})
    headline_picture(logs, folder / "forget_quality.png")
    print("\n" + table(results))
    for name in SHOWN:
        print("\n" + answers(name, logs[0], logs[-1]))
    places = {
        "numbers": "results.json",
        "picture": "forget_quality.png",
        "page for a browser": "unlearned/results.html",
        "unlearned model": "models/unlearned",
        "every row and text": "unlearned/evaluations",
        "TensorBoard": "unlearned",
    }
    print(f"\nDone in {seconds:.0f} s. What it left:")
    for what, place in places.items():
        print(f"  {what:<20}{folder / place}")
    print(f"  look at it with     tensorboard --logdir {folder}")


def summary(log: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the table from an evaluation log."""
    names = ("forget_quality", "model_utility", "forget_probability", "forget_rouge")
    return {name: log["aggregates"].get(name) for name in names}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of the three models as text."""
    lines = [f"{'':<12}{'forget quality p':>18}{'log10 p':>10}{'utility':>10}{'forget prob.':>14}{'forget ROUGE':>14}"]
    for name, result in results.items():
        quality = result["forget_quality"]
        lines.append(
            f"{name:<12}{quality['p']:>18.3g}{quality['log10_p']:>10.2f}{result['model_utility']:>10.3f}"
            f"{result['forget_probability']:>14.3f}{result['forget_rouge']:>14.3f}"
        )
    return "\n".join(lines)


def answers(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return some questions of a set with the truth and what the model said before and after."""
    lines = [f"{name} questions, before and after"]
    pairs = list(zip(before["sets"][name], after["sets"][name], strict=True))
    for old, new in pairs[:: max(1, len(pairs) // SHOWN[name])][: SHOWN[name]]:
        lines += [
            f"  {_line(old['question'])}",
            f"    truth   {_line(old['answer'])}",
            f"    before  {_line(old['generation'])}",
            f"    after   {_line(new['generation'])}",
        ]
    return "\n".join(lines)


def _line(text: str) -> str:
    """Return a model's text on one line of the terminal, without anything that a terminal would obey."""
    line, width = " ".join(printable(text).split()), max(20, shutil.get_terminal_size((120, 24)).columns - 13)
    return line if len(line) <= width else f"{line[: width - 3]}..."
