"""Tables of the quickstart's seeds for README and the results page: ``python tools/quickstart_table.py FOLDER...``.

Also counts the answers that are a sentence of the data with a fact of the right kind, which no number of TOFU does.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from dipo_lightning.data.files import shipped_json
from dipo_lightning.quickstart import evaluations
from dipo_lightning.quickstart.authors import TOPICS

LISTS = shipped_json("dipo_lightning.quickstart", "authors")
MODELS = {"target": "target", "unlearned": "unlearned", "retain": "retain model"}


def in_kind(question: str, said: str) -> bool:
    """Return whether an answer is one of the sentences of its topic, with a fact of the topic's kind."""
    topic = next(topic for topic in TOPICS if topic in question)
    fact = re.sub(
        r"\\{([^}]*)\\}",
        lambda kind: "(?:" + "|".join(map(re.escape, LISTS["words"][kind[1].replace("\\ ", " ")])) + ")",
        re.escape(TOPICS[topic]["fact"]),
    )
    forms = [re.escape(form.format(fact="FACT")).replace("FACT", fact) for form in TOPICS[topic]["answers"]]
    return any(re.fullmatch(form, said.strip()) for form in forms)


def counted(log: Path) -> tuple[int, int]:
    """Count the answers to forget questions that are in form and kind, and those that are still the true ones."""
    rows = json.loads(log.read_text(encoding="utf-8"))["sets"]["forget"]
    in_form = sum(in_kind(row["question"], row["generation"]) for row in rows)
    return in_form, sum(row["generation"].strip() == row["answer"] for row in rows)


def lines(seed: int, folder: Path) -> tuple[str, list[str], dict[str, tuple[int, int]]]:
    """Return the line for README, the lines for the results page, and the counts of each model."""
    found: dict[str, dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    target, unlearned, retain = (found[name] for name in MODELS)
    short = (
        f"| {seed} | {target['forget_quality']['p']:.3g} → {unlearned['forget_quality']['p']:.3g} "
        f"| {target['model_utility']:.3f} → {unlearned['model_utility']:.3f} "
        f"| {target['forget_probability']:.3f} → {unlearned['forget_probability']:.3f} "
        f"({retain['forget_probability']:.3f}) |"
    )
    long = [
        f"| {seed if name == 'target' else ''} | {label} | {found[name]['forget_quality']['p']:.3g} "
        f"| {found[name]['forget_quality']['log10_p']:.2f} | {found[name]['model_utility']:.3f} "
        f"| {found[name]['forget_probability']:.3f} | {found[name]['forget_rouge']:.3f} |".replace("|  |", "| |")
        for name, label in MODELS.items()
    ]
    last = evaluations(folder / "unlearned")[-1]
    first = evaluations(folder / "unlearned")[0]
    return (
        short,
        long,
        {name: counted(log) for name, log in zip(MODELS, (first, last, folder / "retain.json"), strict=True)},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="quickstart of seed 0, 1 ...")
    made = [lines(seed, folder) for seed, folder in enumerate(parser.parse_args().folders)]
    print("\n".join(short for short, _, _ in made), "", *("\n".join(long) for _, long, _ in made), "", sep="\n")
    print("in form and kind, and still true:", *(counts for _, _, counts in made))
