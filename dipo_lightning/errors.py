"""Errors that the user can fix: each message says what was wrong, where, and what to do.

The command line prints such an error without a traceback and exits with code 2.
"""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Options = TypeVar("Options")

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


def refuse_unknown(owner: str, options: Iterable[str], known: Sequence[str] = ()) -> None:
    """Raise an `InputError` for the first of ``options``, which were given to a class that has only the ``known``."""
    for option in options:
        hint = f"; it is {RENAMED[option]} now" if option in RENAMED else ""
        raise InputError(f"{owner} has no option {option}{hint}.{_nearest(option, known)}")


def check_numbers(owner: object, numbers: Mapping[str, float | None], least: float = 1) -> None:
    """Refuse an option below ``least``, or that is not finite; None is not checked.

    Args:
        owner: Owner of the options, for the message: a section such as ``model``; an object such as a callback, whose
            class is named; or an empty text for options without a prefix.
        numbers: Values of the options by name.
        least: Smallest value allowed.

    Raises:
        InputError: Naming the first such option.
    """
    for option, value in numbers.items():
        if value is not None and not least <= value < math.inf:  # NaN is refused, too
            needed = "finite" if value == math.inf else f"at least {least}"
            raise InputError(f"{_full_name(owner, option)} is {value}; it must be {needed}.")


def check_seed(option: str, seed: int) -> None:
    """Raise an `InputError` for a seed that no run accepts."""
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"{option} is {seed}; give a number from 0 to {MOST_SEED}.")


def check_positive(owner: object, numbers: Mapping[str, float | None], most: float = math.inf) -> None:
    """Refuse an option that is not above 0, exceeds ``most`` or is not finite; arguments as for `check_numbers`.

    Raises:
        InputError: Naming the first such option.
    """
    limit = "" if most == math.inf else f" and at most {most:g}"
    for option, value in numbers.items():
        if value is not None and not (0 < value <= most and value < math.inf):
            needed = "finite" if value == math.inf else f"above 0{limit}"
            raise InputError(f"{_full_name(owner, option)} is {value}; it must be {needed}.")


def check_choice(owner: object, option: str, chosen: Any, known: Sequence[str]) -> None:
    """Refuse a value that is not among the known ones; ``owner`` as for `check_numbers`.

    Raises:
        InputError: Naming the option and its choices.
    """
    if chosen not in known:
        names = [str(one) for one in known]
        hint = _nearest(str(chosen), names)
        raise InputError(f"{_full_name(owner, option)} is {chosen!r}; it must be {' or '.join(names)}.{hint}")


def check_arguments(owner: object) -> None:
    """Refuse an argument that is not among the choices of its ``Literal``; called in the constructor of a base class.

    The constructors of its subclasses that are running are checked, too. If several have an argument of one name, the
    choices of the most derived one count.

    Raises:
        InputError: Naming the option and its choices.
    """
    constructors = [vars(cls).get("__init__") for cls in type(owner).__mro__]
    by_code = {one.__code__: one for one in constructors if isinstance(one, FunctionType)}
    given: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    frame = inspect.currentframe()
    while (frame := frame and frame.f_back) is not None and frame.f_code in by_code:
        for name, choices in _choices(by_code[frame.f_code]).items():
            given[name] = frame.f_locals[name], choices
    for name, (value, choices) in given.items():
        check_choice(owner, name, value, choices)


def check_fields(owner: object, options: Any) -> None:
    """Refuse a field of a dataclass that is none of its ``Literal``'s choices; ``owner`` as in `check_numbers`."""
    for name, choices in _choices(type(options)).items():
        check_choice(owner, name, getattr(options, name), choices)


def options_of(name: str, kind: type[Options], given: Any) -> Options:
    """Return an option that is a group of options as its dataclass.

    Args:
        name: Full name of the option, for messages.
        kind: The dataclass.
        given: Such an object, or its fields as a mapping, as a checkpoint has them.

    Raises:
        InputError: It is neither, an option is unknown or missing, or a choice is not one of its ``Literal``.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    if isinstance(given, Mapping):
        refuse_unknown(name, sorted(map(str, given.keys() - set(known))), known)
        try:
            given = kind(**given)
        except TypeError as error:  # one without a default is missing
            raise InputError(f"{name} is {dict(given)!r}, which is no {kind.__name__}: {error}.") from error
    if not isinstance(given, kind):
        raise InputError(
            f"{name} is {given!r}; give {kind.__name__}(...), or a dictionary with some of {', '.join(known)}."
        )
    check_fields(name, given)
    return given


def _choices(annotated: Any) -> dict[str, tuple[Any, ...]]:
    """Return the choices of the arguments of a function, or the fields of a class, that are a ``Literal``."""
    try:
        hints = get_type_hints(annotated)
    except Exception:  # a name that is imported for type checkers only
        return {}
    found = {}
    for name, kind in hints.items():
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if all(one is NoneType or get_origin(one) is Literal for one in kinds) and kind is not NoneType:
            found[name] = tuple(value for one in kinds for value in (get_args(one) or (None,)))
    return found


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _full_name(owner: object, option: str) -> str:
    name = owner if isinstance(owner, str) else type(owner).__name__
    return f"{name}.{option}" if name else option
