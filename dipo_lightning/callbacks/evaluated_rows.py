"""What every row-by-row evaluation has: options of measuring, the rows it found, and those that have no value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.generation import BATCH_ROWS
from dipo_lightning.metrics.functional.min_k import MUSE_FRACTION
from dipo_lightning.scoring import BATCH_TOKENS

Row = dict[str, Any]
Progress = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]
"""Given a total and what is counted, a context that yields the function to call with the rows done."""


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """How rows are measured, whatever is asked of them.

    Attributes:
        batch_tokens: Most tokens of a scoring forward, padding included.
        batch_rows: Most rows of a generation batch.
        min_k_fraction: Share of the least likely tokens that Min-K and Min-K++ average.
        on_missing: What to do with a row that has no value: ``skip`` or ``raise``.
    """

    batch_tokens: int = BATCH_TOKENS
    batch_rows: int = BATCH_ROWS
    min_k_fraction: float = MUSE_FRACTION
    on_missing: str = "skip"


@dataclass
class EvaluatedRows:
    """The rows of each set, and the rows that have no value with the reason, both by set."""

    sets: dict[str, list[Row]] = field(default_factory=dict)
    skipped: dict[str, list[Row]] = field(default_factory=dict)

    def skip(self, set_name: str, index: int, reason: str, on_missing: str) -> None:
        """Leave a row out, or refuse to.

        Raises:
            InputError: ``on_missing`` is ``raise``.
        """
        if on_missing == "raise":
            raise InputError(
                f"Row {index} of {set_name} has no value: {reason} Mend the data, or leave such rows out with "
                "on_missing: skip (the reference log must then leave out the same rows)."
            )
        self.skipped.setdefault(set_name, []).append({"index": index, "reason": reason})
