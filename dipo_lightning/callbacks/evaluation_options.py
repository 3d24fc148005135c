"""The checks of options that evaluations have in common: each names the callback, the option and what it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dipo_lightning.callbacks.evaluated_rows import MeasuringOptions
from dipo_lightning.errors import InputError


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


def check_choice(owner: object, option: str, chosen: Any, known: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse a name that isn't known.

    Raises:
        InputError: Naming the option and what it may be.
    """
    if chosen not in known:
        raise InputError(f"{_name(owner)}.{option} is {chosen!r}; it must be {' or '.join(known)}.")


def _name(owner: object) -> str:
    return type(owner).__name__
