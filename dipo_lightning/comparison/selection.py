"""Choice of a grid's settings by a stated rule, on runs that are not reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipo_lightning.comparison.plan import Selection, Settings
from dipo_lightning.comparison.results import Row, Scale, by_epoch
from dipo_lightning.comparison.tables import Spread
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


def choose(candidates: Sequence[Candidate], selection: Selection, scale: Scale) -> Choice:
    """Apply the rule (see `Selection`) to the candidates of one method.

    Of those that tie with the best in forgetting the one with the higher utility is taken, then the earlier candidate,
    then the earlier epoch.

    Raises:
        RunError: There is no candidate, or none has both numbers that runs are compared by.
    """
    if not candidates:
        raise RunError("every run of its grid failed, so that nothing could be chosen")
    tried = [(candidate, row) for candidate in candidates for row in considered(candidate.rows, selection.epoch)]
    tried = [pair for pair in tried if scale.forgetting(pair[1]) is not None and pair[1]["utility_kept"] is not None]
    if not tried:
        pair = f"a {scale.label(scale.headline.forget)} and a {scale.label(scale.headline.utility)}"
        raise RunError(f"no candidate has both {pair} to choose by; the base's evaluation needs {scale.headline.needs}")
    keeping = [pair for pair in tried if pair[1]["utility_kept"] >= selection.keep_utility]
    if keeping:
        best = max(keeping, key=lambda pair: scale.goodness(scale.forgetting(pair[1])))
        tried = [pair for pair in keeping if ties(pair[1], best[1], scale)]
    best = max(tried, key=lambda pair: float(pair[1]["utility_kept"]))
    return Choice(best[0].settings, best[1]["epoch"] if selection.epoch == "any" else None)


def ties(row: Row, best: Row, scale: Scale) -> bool:
    """Tell whether two rows are alike in forgetting: equal, or each lies inside the other's interval over rows."""
    spread, other = (Spread.of([one], scale.headline.forget) for one in (row, best))
    if spread is None or other is None:
        return False
    return spread.low <= other.mean <= spread.high and other.low <= spread.mean <= other.high


def considered(rows: Sequence[Row], epoch: str) -> list[Row]:
    """Return the rows of a run that the rule may take: its last epoch, or any."""
    found = list(by_epoch(rows).values())
    return found if epoch == "any" else found[-1:]


def rule(selection: Selection, scale: Scale) -> str:
    """Say the rule, for the report."""
    forgetting, utility = scale.label(scale.headline.forget), scale.label(scale.headline.utility)
    runs = f"the runs of seed {selection.seed}" + ("" if selection.allow_same_data else ", which are not reported")
    where = "at any epoch, which is then reported too" if selection.epoch == "any" else "at the last epoch"
    return (
        f"Settings were chosen on {runs}: among the candidates that keep at least {selection.keep_utility:g} of the "
        f"target's {utility}, the one that is best in {forgetting} {where}, and among those in a tie with it the "
        f"one with the highest {utility}; so too where none keeps it."
    )
