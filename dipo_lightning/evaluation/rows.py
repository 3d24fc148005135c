"""What every row-by-row evaluation has: options of measuring, the rows it found, and those that have no value.

The checks of options that evaluations have in common: each names the callback, the option and what it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import BATCH_ROWS
from dipo_lightning.evaluation.scoring import BATCH_TOKENS
from dipo_lightning.metrics.functional.min_k import MUSE_FRACTION

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


def check_measuring(owner: object, options: MeasuringOptions) -> None:
    """Refuse what no evaluation can measure by.

    Args:
        owner: The callback, for the message.
        options: Its options of measuring.

    Raises:
        InputError: Naming the option as the callback's own argument.
    """
    check_numbers(owner, {"batch_tokens": options.batch_tokens, "generation_rows": options.batch_rows})
    if not 0 < options.min_k_fraction <= 1:
        raise InputError(f"{_name(owner)}.min_k_fraction is {options.min_k_fraction}; it must be in (0, 1].")
    check_choice(owner, "on_missing", options.on_missing, ("skip", "raise"))


def check_numbers(owner: object, numbers: Mapping[str, int | None], least: int = 1) -> None:
    """Refuse a number below ``least``; None is no number.

    Raises:
        InputError: Naming the first such option.
    """
    for option, value in numbers.items():
        if value is not None and value < least:
            raise InputError(f"{_name(owner)}.{option} is {value}; it must be at least {least}.")


def check_choice(owner: object, option: str, chosen: Any, known: Sequence[str]) -> None:
    """Refuse a name that isn't known.

    Raises:
        InputError: Naming the option and what it may be.
    """
    if chosen not in known:
        raise InputError(f"{_name(owner)}.{option} is {chosen!r}; it must be {' or '.join(known)}.")


def _name(owner: object) -> str:
    return type(owner).__name__
