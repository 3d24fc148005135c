"""Which settings of a grid are taken: a stated rule, on runs that are not reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipo_lightning.comparison.plan import Selection, Settings
from dipo_lightning.comparison.results import Row, by_epoch
from dipo_lightning.errors import RunError


@dataclass(frozen=True)
class Candidate:
    """Settings that were tried on the selection seed, and what they measured there, first epoch to last."""

    method: str
    settings: Settings
    label: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Choice:
    """The settings that are reported, and the epoch at which (None: the last)."""

    settings: Settings
    epoch: int | None = None


def choose(candidates: Sequence[Candidate], selection: Selection) -> Choice:
    """Apply the rule (see `Selection`) to the candidates of one method.

    Ties go to the higher utility, then to the earlier candidate, then to the earlier epoch.

    Raises:
        RunError: There is no candidate, or none has a forget quality and a model utility.
    """
    if not candidates:
        raise RunError("every run of its grid failed, so that nothing could be chosen")
    tried = [(candidate, row) for candidate in candidates for row in considered(candidate.rows, selection.epoch)]
    tried = [pair for pair in tried if pair[1]["log10_p"] is not None and pair[1]["utility_kept"] is not None]
    if not tried:
        raise RunError(
            "no candidate has both a forget quality and a model utility to choose by; the base's evaluation needs "
            "retain_log, generate: true and at_start: true"
        )
    keeping = [pair for pair in tried if pair[1]["utility_kept"] >= selection.keep_utility]
    best = max(keeping, key=_quality) if keeping else max(tried, key=_utility)
    return Choice(best[0].settings, best[1]["epoch"] if selection.epoch == "any" else None)


def considered(rows: Sequence[Row], epoch: str) -> list[Row]:
    """Return the rows of a run that the rule may take: its last epoch, or any."""
    found = list(by_epoch(rows).values())
    return found if epoch == "any" else found[-1:]


def _quality(pair: tuple[Candidate, Row]) -> tuple[float, float]:
    return pair[1]["log10_p"], pair[1]["utility_kept"]


def _utility(pair: tuple[Candidate, Row]) -> float:
    return pair[1]["utility_kept"]


def rule(selection: Selection) -> str:
    """Say the rule, for the report."""
    runs = f"the runs of seed {selection.seed}" + ("" if selection.allow_same_data else ", which are not reported")
    where = "at any epoch, which is then reported too" if selection.epoch == "any" else "at the last epoch"
    return (
        f"Settings were chosen on {runs}: among the candidates that keep at least {selection.keep_utility:g} of the "
        f"target's model utility, the one with the highest forget quality (log10 p) {where}; where none keeps it, the "
        "one with the highest model utility."
    )
