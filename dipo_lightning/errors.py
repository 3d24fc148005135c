"""Errors that are the user's to mend: a sentence that says what was wrong, where, and what to do.

The command line prints such an error without a traceback and exits with code 2.
"""


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
