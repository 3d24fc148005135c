"""Errors that the user can fix: each message says what was wrong, where, and what to do.

The command line prints such an error without a traceback and exits with code 2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

RENAMED = {
    **{f"lora_{name}": f"model.lora.{name}" for name in ("rank", "alpha", "dropout", "targets")},
    **{name: f"model.pair.{name}" for name in ("source", "selection", "k", "p", "rho", "memory_vector", "alpha")},
    **{name: f"schedule.{name}" for name in ("every_n_epochs", "every_n_steps", "at_start", "at_end")},
    **{name: f"measuring.{name}" for name in ("batch_tokens", "generation_rows", "max_new_tokens", "generate")},
    **{name: f"measuring.{name}" for name in ("min_k_fraction", "on_missing")},
    **{name: f"max_{name}" for name in ("rows", "forget_rows", "retain_rows")},
    "reference_log": "retain_log",
    "tokenizer_name": "data.tokenizer",
}
"""Current full name of a renamed option, by its old name."""
MOST_SEED = 2**32 - 1
"""Largest seed that NumPy, and so Lightning, accepts."""


class DiPOError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(DiPOError):
    """Error for an input (an option, a file, a model, a log) that cannot be used as it is.

    Not a ``ValueError``: a parser that catches one tries the next type, and the message would be lost.
    """


class RunError(DiPOError):
    """Error for a run that cannot continue correctly (a non-finite loss, a full disk, a cache of other weights)."""


def root_cause(error: BaseException) -> BaseException:
    """Return the error of this package that led to ``error``, or ``error`` itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DiPOError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def refuse_unknown(owner: str, options: Iterable[str]) -> None:
    """Raise an `InputError` for the first of ``options``, which were given to a class that does not have them."""
    for option in options:
        hint = f"; it is {RENAMED[option]} now" if option in RENAMED else ""
        raise InputError(f"{owner} has no option {option}{hint}.")


def check_numbers(owner: object, numbers: Mapping[str, float | None], least: float = 1) -> None:
    """Refuse an option below ``least``; None is not checked.

    Args:
        owner: Owner of the options, for the message: a section such as ``model``; an object such as a callback, whose
            class is named; or an empty text for options without a prefix.
        numbers: Values of the options by name.
        least: Smallest value allowed.

    Raises:
        InputError: Naming the first such option.
    """
    for option, value in numbers.items():
        if value is not None and not value >= least:  # NaN is refused too
            raise InputError(f"{_full_name(owner, option)} is {value}; it must be at least {least}.")


def check_seed(option: str, seed: int) -> None:
    """Raise an `InputError` for a seed that no run accepts."""
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"{option} is {seed}; give a number from 0 to {MOST_SEED}.")


def check_positive(owner: object, numbers: Mapping[str, float | None], most: float = math.inf) -> None:
    """Refuse an option that is not above 0 or exceeds ``most``; arguments as for `check_numbers`.

    Raises:
        InputError: Naming the first such option.
    """
    limit = "" if most == math.inf else f" and at most {most:g}"
    for option, value in numbers.items():
        if value is not None and not 0 < value <= most:
            raise InputError(f"{_full_name(owner, option)} is {value}; it must be above 0{limit}.")


def check_choice(owner: object, option: str, chosen: Any, known: Sequence[str]) -> None:
    """Refuse a value that is not among the known ones; ``owner`` as for `check_numbers`.

    Raises:
        InputError: Naming the option and its choices.
    """
    if chosen not in known:
        raise InputError(f"{_full_name(owner, option)} is {chosen!r}; it must be {' or '.join(known)}.")


def check_kind(owner: object, option: str, value: object, cls: type) -> None:
    """Refuse a value that is neither None nor an instance of ``cls``; ``owner`` as for `check_numbers`.

    Raises:
        InputError: Naming the option, and the class with its module.
    """
    if value is not None and not isinstance(value, cls):
        raise InputError(
            f"{_full_name(owner, option)} is of the type {type(value).__name__}; give a {cls.__name__} (in "
            f"{cls.__module__})."
        )


def _full_name(owner: object, option: str) -> str:
    name = owner if isinstance(owner, str) else type(owner).__name__
    return f"{name}.{option}" if name else option
