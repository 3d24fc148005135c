"""The hub without a network: the copies on this machine, or an error, within seconds."""

from __future__ import annotations

import contextlib
import functools
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

PATIENCE = 4.0
"""Seconds that the hub has to answer before it counts as out of reach."""


@contextlib.contextmanager
def bounded_hub() -> Iterator[None]:
    """Take the hub's libraries offline where the hub does not answer: by themselves they retry for half a minute."""
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
    """Return the errors in which a call to the hub ends where there is no network, or a refusal, and ``more``.

    Those of the client that ``huggingface_hub`` calls with are no `OSError` in every version of it.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__, *more)


@functools.cache
def hub_answers(endpoint: str, patience: float = PATIENCE) -> bool:
    """Find out if anything answers at the hub's address; asked once per process.

    In a thread, since looking up a name has no time limit of its own.
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
