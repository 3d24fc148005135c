"""Errors that are the user's to mend: a sentence that says what was wrong, where, and what to do.

The command line prints such an error without a traceback and exits with code 2.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self


class DiPOError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(DiPOError):
    """Something that was given (an option, a file, a model, a log) cannot be used as it is.

    Not a ``ValueError``: parsers take those for "try the next type" and would bury the sentence.
    """


class RunError(DiPOError):
    """A run cannot go on and still be right (a non-finite loss, a full disk, a cache of other weights)."""


def root_cause(error: BaseException) -> BaseException:
    """Return the error of this package that led to ``error``, or ``error`` itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DiPOError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


class RenamedOptions:
    """Mixin for classes that are built from YAML: a former name of an option is refused with its present one.

    Attributes:
        renamed_options: Present name by former name; those of base classes count too. A name with a dot,
            ``schedule.at_start``, is a field of an option.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse former names.

        Raises:
            InputError: An option has a former name.
        """
        for name in kwargs:
            if present := present_name(cls, name):
                raise InputError(f"{cls.__name__}.{name} is now {present}.")
        return super().__new__(cls)


def present_name(kind: type, former: str) -> str | None:
    """Return the present name of an option of a class by its former one; None where it has none."""
    for base in kind.__mro__:
        if name := vars(base).get("renamed_options", {}).get(former):
            return str(name)
    return None


def classes_that_renamed(former: str, kind: type = RenamedOptions) -> Iterator[type]:
    """Yield the loaded classes that have given an option another name."""
    one: type
    for one in kind.__subclasses__():
        if former in vars(one).get("renamed_options", {}):
            yield one
        yield from classes_that_renamed(former, one)
