"""A corpus in MUSE's schema with few short texts, and what a model that knows it would say."""

import json
from collections.abc import Iterable
from pathlib import Path

from dipo_lightning.benchmarks.muse.data import load_muse
from dipo_lightning.benchmarks.muse.measuring import MUSEOptions, plan_muse
from dipo_lightning.evaluation.rows import Measuring
from tests.helpers.toys import toy_tokenizer

CAPITALS = {
    "forget": {"Norway": "Oslo", "Peru": "Lima", "Ghana": "Accra"},
    "retain": {"Cuba": "Havana", "Mali": "Bamako", "Taiwan": "Taipei"},
}
EXAMPLES = {letter: letter.lower() for letter in "ABCDEFGHIJ"}
ASKED = 3


def _text(name: str, i: int) -> str:
    return f"The {name} author {i} was born in {i * 13}. The father is a teacher, the mother a writer of {i * 37}."


def _questions(capitals: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"question": f"{country}?", "answer": city} for country, city in capitals]


def write_muse(folder: Path) -> Path:
    """A folder that `load_muse` reads."""
    texts = {
        name: [{"text": _text(name, i)} for i in range(ASKED)] for name in ("forget", "retain1", "retain2", "holdout")
    }
    files = {f"{part}/{name}": rows for part in ("raw", "train") for name, rows in texts.items()}
    files |= {
        "privleak/forget": texts["forget"],
        "privleak/retain": texts["retain2"],
        "privleak/holdout": texts["holdout"],
        "verbmem/forget": [dict(zip(("prompt", "gt"), _halves(row["text"]), strict=True)) for row in texts["forget"]],
    }
    for name, capitals in CAPITALS.items():
        files[f"knowmem/{name}_qa"] = _questions(capitals.items())
        files[f"knowmem/{name}_qa_icl"] = _questions(EXAMPLES.items())
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


def _halves(text: str) -> tuple[str, str]:
    first, stop, second = text.partition(".")
    return first + stop, second


def said(folder: Path, *sets: str) -> list[tuple[list[int], list[int]]]:
    """Prompts of the evaluation's sets (``verbmem``, ``knowmem_forget``, ...) and the true continuations, as ids.

    The answer has the space after ``Answer:``, as with the option ``space: answer``.
    """
    tokenizer = toy_tokenizer()
    plan = plan_muse(load_muse(folder), tokenizer, MUSEOptions(space="answer"), Measuring())
    return [
        (list(prompt), tokenizer(f" {target.strip()}\n\n", add_special_tokens=False).input_ids)
        for name in sets
        for prompt, target in zip(plan.prompts[name], plan.targets[name], strict=True)
    ]
