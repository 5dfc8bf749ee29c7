"""What the Hub's answers mean, in words and in what to do."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from audiossl import caches
from audiossl.errors import AudiosslError, ModelError, OutputError
from audiossl.hub.cache import HubName

TRANSIENT = (408, 429, 500, 502, 503, 504)  # answers worth asking again for
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
LITTLE = 2**20  # bytes: a disk with less free is full


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without the client's own remarks: what matters is said once, in one line, by this program."""
    from huggingface_hub.utils import logging as client_logging  # sets its level on import

    client = client_logging.get_logger()
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        client.setLevel(level)


@contextlib.contextmanager
def asking_the_disk(place: Path) -> Iterator[None]:
    """Not everything that fails on a full disk says so: look at the disk."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) is None and shutil.disk_usage(place).free < LITTLE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


@contextlib.contextmanager
def explained(name: HubName, cache: Path) -> Iterator[None]:
    """Turn what the client raises into one line that says what to do."""
    try:
        yield
    except ModelError as error:
        place = re.escape(str(cache)) + r"/\S*/\.new-\w+/(incoming|model)/?"
        message = re.sub(
            place, "", str(error)
        )  # a work folder that is gone means nothing to anyone
        raise ModelError(message if str(name) in message else f"{name}: {message}") from error
    except AudiosslError:
        raise
    except Exception as error:  # two major versions of the client raise different families
        number = getattr(error, "errno", None)
        if number in FULL:
            raise OutputError(f"{name}: no room in {cache}: make some, or {caches.HINT}") from error
        if number in DENIED:
            reason = os.strerror(number)
            raise OutputError(f"model cache {cache}: {reason}: {caches.HINT}") from error
        raise ModelError(f"{name}: {_reason(error, name)}") from error


def _reason(error: Exception, name: HubName) -> str:
    from huggingface_hub import errors

    page = f"{endpoint()}/{name.id}"
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return f"gated: accept its terms at {page}, then set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {name.revision!r}: see {page}/tree/main"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such model on {host()}, or a private one: check the name, or set HF_TOKEN"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "a file that the Hub lists is not there: try again later"
    if status in (401, 403):
        return f"{host()} refuses access ({status}): check HF_TOKEN, and {page}"
    if status == 429:
        return f"{host()} gets too many requests from here (429): wait a while, or set HF_TOKEN"
    if status is not None:
        return f"{host()} answers with an error ({status}): try again later"
    if isinstance(error, OSError | _http_error()):
        return (
            f"cannot get it from {host()} ({_innermost(error)}): check the network, the proxy"
            " settings and HF_ENDPOINT, then run it again"
        )
    return f"the answer of {host()} is not the Hub's ({_innermost(error)}): check HF_ENDPOINT"


def transient(error: Exception) -> bool:
    status = _status(error)
    return status in TRANSIENT if status is not None else isinstance(error, _http_error())


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _http_error() -> type[Exception]:
    """The base of what the client's HTTP library raises: httpx with version 1, httpx2 with 2."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def host() -> str:
    return urlsplit(endpoint()).netloc or endpoint()
