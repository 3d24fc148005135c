"""Use of the hub without a network: cached copies, or an error, within seconds."""

from __future__ import annotations

import contextlib
import functools
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

PATIENCE = 4.0
"""Seconds without an answer after which the hub counts as unreachable."""


@contextlib.contextmanager
def bounded_hub() -> Iterator[None]:
    """Put the hub's libraries into offline mode if the hub does not answer; they would retry for half a minute."""
    from huggingface_hub import constants

    if constants.is_offline_mode() or hub_answers(constants.ENDPOINT):
        yield
        return
    import datasets.config

    settings = [(constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [getattr(owner, name) for owner, name in settings]
    for owner, name in settings:
        setattr(owner, name, True)
    try:
        yield
    finally:
        for (owner, name), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def hub_errors(*more: type[BaseException]) -> tuple[type[BaseException], ...]:
    """Return the errors that a call to the hub raises without a network or when it is refused, and ``more``.

    The errors of the HTTP client behind ``huggingface_hub`` are not an `OSError` in every version of it.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__, *more)


@functools.cache
def hub_answers(endpoint: str, patience: float = PATIENCE) -> bool:
    """Return whether anything answers at the hub's address; checked once per process.

    In a thread, since a name lookup has no timeout of its own.
    """
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(_answers(endpoint, patience)), daemon=True)
    thread.start()
    thread.join(patience)
    return bool(found and found[0])


def _answers(endpoint: str, patience: float) -> bool:
    request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "dipo-lightning"})
    try:
        with urllib.request.urlopen(request, timeout=patience):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # something is there; certificates are the libraries' affair
    except OSError:
        return False
