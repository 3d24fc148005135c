"""What a run measured: its evaluations as flat rows, one an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.columns import flat_numbers
from dipo_lightning.report.run_folder import read_document

Row = dict[str, Any]
"""method, settings, seed, epoch, step, forget_quality_p, log10_p, model_utility, and every other aggregate."""

COLUMNS = (
    "method",
    "settings",
    "seed",
    "epoch",
    "step",
    "forget_quality_p",
    "log10_p",
    "model_utility",
    "utility_kept",
)


def evaluation_rows(folder: Path, method: str | None = None, settings: str = "", seed: int | None = None) -> list[Row]:
    """Read the TOFU evaluations of a run.

    Args:
        folder: Of the run; it, or one folder below it, holds ``evaluations``.
        method: The method's name; None takes the class that the evaluation names.
        settings: The settings in words.
        seed: The run's seed; None takes the one that the evaluation names.

    Returns:
        A row an evaluation, in the order of their steps.

    Raises:
        InputError: There are none, or more than one run's, or one of them is no evaluation.
    """
    places = [folder / "evaluations"] if (folder / "evaluations").is_dir() else sorted(folder.rglob("evaluations"))
    if len(places) != 1:
        raise InputError(f"{folder} holds the evaluations of {len(places)} runs; name the folder of one run.")
    rows = []
    for path in places[0].glob("tofu_epoch=*.json"):  # other evaluations of a step lie beside them
        document = read_document(path)
        where = document["provenance"]
        rows.append(
            {
                "method": method or str(where.get("method", folder.name)).removesuffix("Module"),
                "settings": settings,
                "seed": where.get("seed") if seed is None else seed,
                "epoch": where.get("epoch"),
                "step": where.get("step"),
                **measures(document["aggregates"]),
            }
        )
    if not rows:
        raise InputError(f"{places[0]} has no evaluation of TOFU: the run has no TOFUEvaluation, or did not get to it.")
    return sorted(rows, key=lambda row: (row["epoch"] or 0, row["step"] or 0))


def measures(aggregates: Mapping[str, Any]) -> Row:
    """Return every number among ``aggregates``, with forget quality as ``forget_quality_p`` and ``log10_p``."""
    found: Row = {"forget_quality_p": None, "model_utility": None, **flat_numbers(aggregates)}
    found["log10_p"] = found.pop("forget_quality_log10_p", None)
    return found


def by_epoch(rows: Sequence[Row]) -> dict[int, Row]:
    """Return the last row of each epoch of one run, in their order; without the first, epoch 0, the target's."""
    return {row["epoch"]: row for row in rows if row["step"]}


def target_row(rows: Sequence[Row]) -> Row | None:
    """Return the row of one run that was measured before its first step, if there is one."""
    return next((row for row in rows if row["step"] == 0), None)


def add_utility_kept(rows: Sequence[Row], target: Row | None) -> None:
    """Give each row the share of the target's model utility that is left."""
    before = None if target is None else target["model_utility"]
    for row in rows:
        now = row["model_utility"]
        row["utility_kept"] = None if now is None or not before else now / before
