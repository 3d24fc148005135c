"""What an evaluation log says, whatever format it was written in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError

Row = Mapping[str, Any]
Rows = Sequence[Row]
Sets = Mapping[str, Rows]

TOFU_FORMAT = "dipo-lightning/tofu/1"
MUSE_FORMAT = "dipo-lightning/muse/1"
USER_DATA_FORMAT = "dipo-lightning/user_data/1"
OPEN_UNLEARNING_FORMAT = "open-unlearning/tofu"
OPEN_UNLEARNING_MUSE_FORMAT = "open-unlearning/muse"
MUSE_FORMATS = (MUSE_FORMAT, OPEN_UNLEARNING_MUSE_FORMAT)
TOFU_AUTHORS_FORMAT = "locuslab/tofu"

END_OF_TURN = "excluded"
"""The setting `end_of_turn`: memorisation and Min-K leave out the token that ends an answer, as open-unlearning does.

Logs of this package without it come from before, and include the token.
"""


@dataclass(frozen=True)
class EvaluationLog:
    """Rows of an evaluation with what is known about how they were made.

    Attributes:
        format: `dipo-lightning/tofu/1`, `dipo-lightning/muse/1`, `dipo-lightning/user_data/1`,
            `open-unlearning/tofu`, `open-unlearning/muse` or `locuslab/tofu`.
        settings: How it was evaluated (split, prompt_style, truth_ratio, ...); what a foreign format does not say is
            absent.
        sets: Rows by set name, each a dict with at least `index`.
        skipped: Rows that could not be scored by set name, each with `index` and `reason`.
        aggregates: What the log itself says its numbers are; empty in formats that store none.
        provenance: Versions, seeds and fingerprints, where given.
        path: Where it was read from.
    """

    format: str
    settings: dict[str, Any]
    sets: dict[str, list[dict[str, Any]]]
    skipped: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    aggregates: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def end_of_turn(self) -> str | None:
        """Whether the Min-K scores include the token that ends an answer; None where there is nothing to tell by."""
        if self.format == OPEN_UNLEARNING_FORMAT:
            return END_OF_TURN
        if "end_of_turn" in self.settings or self.format != TOFU_FORMAT:
            return self.settings.get("end_of_turn")
        return "included" if any("min_k" in row for row in self.sets.get("holdout", ())) else None


def with_skipped(sets: Sets, skipped: Sets | None) -> dict[str, list[Row]]:
    """The sets with a row that holds nothing but its index and the reason for each skipped one, ordered by index.

    Args:
        sets: Rows by set name.
        skipped: Skipped rows by set name.

    Returns:
        A new mapping; the rows themselves are not copied.
    """
    names = dict.fromkeys([*sets, *(skipped or {})])
    whole = {name: [*sets.get(name, ()), *(skipped or {}).get(name, ())] for name in names}
    return {
        name: sorted(unique_rows(f"set {name!r}", rows), key=lambda row: row["index"]) for name, rows in whole.items()
    }


def unique_rows(where: str, rows: Iterable[Row]) -> list[Row]:
    """Refuse a set in which an index stands twice or is missing.

    Args:
        where: Which set, for the message.
        rows: Its rows.

    Returns:
        The rows as a list.

    Raises:
        InputError: A row has no integer index, or shares it with another.
    """
    rows = list(rows)
    seen: set[int] = set()
    for position, row in enumerate(rows):
        index = row.get("index")
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise InputError(f"{where}, row number {position}: `index` must be an integer >= 0, got {index!r}")
        if index in seen:
            raise InputError(f"{where}: row {index} stands in it twice; each row counts once")
        seen.add(index)
    return rows
