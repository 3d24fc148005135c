"""Report of the quickstart on one screen: tables, answers before and after, a picture, and the paths of all results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dipo_lightning.evaluation.run_folder import write_json
from dipo_lightning.report.runs import headline_picture
from dipo_lightning.safety.display import printable

SHOWN = {"forget": 3, "retain": 2}
"""Number of questions printed of each set."""


def write_report(folder: Path, evaluations: list[Path], attacked: dict[str, Any], seconds: float) -> None:
    """Write ``results.json`` and the picture, and print the tables, some answers and the paths."""
    from dipo_lightning.cli.score import score

    logs = [json.loads(path.read_text(encoding="utf-8")) for path in evaluations]
    path = folder / "retain.json"
    retain = json.loads(path.read_text(encoding="utf-8"))
    models = {"target": logs[0], "unlearned": logs[-1], "retain": retain}
    results = {name: summary(log) for name, log in models.items()}
    results["retain"]["forget_quality"] = score(path, path)["forget_quality"]  # against itself
    write_json(folder / "results.json", {**results, "seconds": round(seconds, 1)})
    headline_picture(logs, folder / "forget_quality.png")
    print("\n" + table(results))
    print("\n" + attack_table(attacked))
    for name in SHOWN:
        print("\n" + answers(name, logs[0], logs[-1]))
    places = {
        "numbers": "results.json",
        "picture": "forget_quality.png",
        "page for a browser": "unlearned/results.html",
        "unlearned model": "models/unlearned",
        "every row and text": "unlearned/evaluations",
        "attacks": "attacks/robustness.md",
    }
    print(f"\nDone in {seconds:.0f} s. Where to look next:")
    for what, place in places.items():
        print(f"  {what:<20}{folder / place}")
    print(f"  {'every curve':<20}tensorboard --logdir {folder}")


def summary(log: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of an evaluation log that the table shows."""
    names = ("forget_quality", "model_utility", "forget_probability", "forget_rouge")
    return {name: log["aggregates"].get(name) for name in names}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table of the three models as text."""
    lines = [f"{'':<12}{'forget quality p':>18}{'log10 p':>10}{'utility':>10}{'forget prob.':>14}{'forget ROUGE':>14}"]
    for name, result in results.items():
        quality = result["forget_quality"] or {}
        lines.append(
            f"{name:<12}{_cell(quality.get('p'), '.3g'):>18}{_cell(quality.get('log10_p'), '.2f'):>10}"
            f"{_cell(result['model_utility']):>10}{_cell(result['forget_probability']):>14}"
            f"{_cell(result['forget_rouge']):>14}"
        )
    return "\n".join(lines)


def _cell(number: float | None, form: str = ".3f") -> str:
    return "-" if number is None else format(number, form)


def attack_table(attacked: dict[str, Any]) -> str:
    """Return a text table of the probability of the forget answers under attack, with a column per model."""
    numbers, settings = attacked["aggregates"], attacked["settings"]
    conditions = settings["conditions"]
    wordings = [one["name"] for one in conditions if one["attack"] == "wordings"]
    lines = {"asked plainly": ["plain"], "asked in other words, the worst": wordings}
    lines |= {one["title"]: [one["name"]] for one in conditions if one["kind"] == "rounded"}
    for one in conditions:
        if one["kind"] == "curve":
            lines[f"after {one['steps'][-1]} steps of relearning"] = [f"{one['name']}_step{one['steps'][-1]}"]
    text = [f"{'probability of what was forgotten':<34}" + "".join(f"{model:>12}" for model in settings["models"])]
    for label, names in lines.items():
        found = [[numbers.get(f"{model}_{name}_probability") for name in names] for model in settings["models"]]
        worst = [max((number for number in some if number is not None), default=None) for some in found]
        text.append(f"{label:<34}" + "".join(f"{_cell(number):>12}" for number in worst))
    return "\n".join(text)


def answers(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return some questions of a set with the answers before and after, and the true answer if it differs."""
    lines = [f"{name} questions, before and after"]
    later = {row["index"]: row for row in after["sets"][name]}
    pairs = [(row, later[row["index"]]) for row in before["sets"][name] if row["index"] in later]
    stride = max(1, len(pairs) // SHOWN[name] + 1)  # not always the same topic
    for old, new in pairs[::stride][: SHOWN[name]]:
        lines.append(f"  {_line(old['question'])}")
        if old["generation"] != old["answer"]:
            lines.append(f"    truth   {_line(old['answer'])}")
        lines += [f"    before  {_line(old['generation'])}", f"    after   {_line(new['generation'])}"]
    return "\n".join(lines)


def _line(text: str) -> str:
    """Return a model's text on one line of the terminal, without control sequences."""
    line, width = " ".join(printable(text).split()), max(20, shutil.get_terminal_size((120, 24)).columns - 13)
    return line if len(line) <= width else f"{line[: width - 3]}..."
