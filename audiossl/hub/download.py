"""Models from the Hugging Face Hub into the cache: pinned, checked, converted once, whole.

    revision -> commit and list of files (one request) -> a work folder -> sha256 of every file
    against the Hub's list -> converted where it is in a published layout -> receipt -> final name

Only safetensors, JSON and text are downloaded, and no code ever runs. The Hub's own client checks
the length of a file and no more, so the content is checked here. One process a repository works,
the others wait and find the result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import audiossl
from audiossl.errors import AudiosslError, ModelError, OutputError
from audiossl.hub import cache as hub_cache
from audiossl.hub.cache import HubName, Receipt
from audiossl.hub.config import CONFIG, read_json, refuse_code
from audiossl.hub.find import WEIGHTS, verify

log = logging.getLogger("audiossl")

OFFLINE = ("AUDIOSSL_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRANSIENT = (408, 429, 500, 502, 503, 504)  # answers worth asking again for
DELAYS = (0.5, 2.0)  # seconds before the second and the third try; the client itself retries files
TIMEOUT = 10.0  # seconds without an answer to the first request
TEXT = (".json", ".txt")
TEXT_BYTES = 32 * 2**20  # of one JSON or text file: a large tokenizer has a few MB
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
INDEX = f"{WEIGHTS}.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
LITTLE = 2**20  # bytes: a disk with less free is full


@dataclass(frozen=True)
class RemoteFile:
    """A file of the Hub; `kind` of `digest`: "sha256", or "sha1" as git has it for small files."""

    name: str
    size: int
    kind: str
    digest: str


@dataclass(frozen=True)
class Listing:
    """What a revision stands for."""

    commit: str
    licence: str
    files: tuple[RemoteFile, ...]


def offline() -> str | None:
    """The environment variable that forbids the network, or None."""
    yes = {"1", "true", "yes", "on"}
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() in yes), None)


def obtain(name: HubName, *, refresh: bool = False) -> Path:
    """The folder of a Hub model: from the cache, else downloaded, checked and put there.

    A revision is asked for once and then stays with its commit; `refresh` asks again, and mends a
    damaged folder. Raises ModelError that says what to do, OutputError when it cannot be written.
    """
    folder = None if refresh else hub_cache.find(name)
    if folder:
        return folder
    if forbidden := offline():
        what = "cannot be refreshed: " if refresh else "is not in the cache, and "
        raise ModelError(
            f"{name} {what}{forbidden} forbids to ask the Hub: unset it, or run"
            f" `audiossl models pull {name}` where there is a network"
        )
    with hub_cache.lock(name):
        folder = None if refresh else hub_cache.find(name)  # another process may have been faster
        return folder or _pull(name)


def _pull(name: HubName) -> Path:
    with _explained(name, hub_cache.root()), _hushed():
        listing = _list(name)
        folder = hub_cache.folder_of(name, listing.commit)
        if not _sound(folder):
            files = _choose(name, listing)
            size = sum(file.size for file in files) / 1e6
            log.warning("%s: downloading commit %s, %.1f MB", name, listing.commit, size)
            with hub_cache.workplace(name) as place:
                made = _make(name, listing, files, place)
                hub_cache.publish(made, folder)
        hub_cache.pin(name, listing.commit)
    return folder


def _sound(folder: Path) -> bool:
    if not (folder / hub_cache.RECEIPT).is_file():
        return False
    try:
        verify(folder)
    except ModelError as error:
        log.warning("%s", error)
        return False
    return True


# --- what there is --------------------------------------------------------------------------------


def _list(name: HubName) -> Listing:
    from huggingface_hub import HfApi

    api = HfApi(library_name="audiossl", library_version=audiossl.__version__)
    for delay in (*DELAYS, None):
        try:
            info = api.model_info(
                name.id, revision=name.revision, files_metadata=True, timeout=TIMEOUT
            )
            break
        except Exception as error:
            if delay is None or not _transient(error):
                raise
        time.sleep(delay)
    commit = str(info.sha)
    if name.at(commit).commit is None or name.commit not in (None, commit):
        raise ModelError(f"{name}: {_host()} names no commit: is HF_ENDPOINT right?")
    licences = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
    files = [_remote(item) for item in info.siblings or ()]
    return Listing(commit, ", ".join(licences), tuple(file for file in files if file))


def _remote(item: Any) -> RemoteFile | None:
    """An entry of the Hub's list; None when it has no digest to check it by."""
    if item.lfs is not None:
        return RemoteFile(item.rfilename, int(item.lfs.size), "sha256", str(item.lfs.sha256))
    if item.blob_id is None or item.size is None:
        return None
    return RemoteFile(item.rfilename, int(item.size), "sha1", str(item.blob_id))


def _choose(name: HubName, listing: Listing) -> list[RemoteFile]:
    """The config, other JSON and text, the weights. Raises ModelError where that is no model."""
    top = {file.name: file for file in listing.files if re.fullmatch(r"\w[\w.-]*", file.name)}
    top.pop(hub_cache.RECEIPT, None)  # ours to write
    if CONFIG not in top:
        raise ModelError(f"{name} is no model that can be read here: it has no {CONFIG}")
    weights = [top[WEIGHTS]] if WEIGHTS in top else _shards(top)
    if not weights:
        pickles = [file for file in top if file.endswith(PICKLES)]
        way = (
            f"only {pickles[0]}, a pickle: if you trust its source, download it and run `audiossl"
            " models convert FILE --out FOLDER`"
            if pickles
            else "ask its author for one"
        )
        raise ModelError(f"{name} has no {WEIGHTS}: {way}")
    text = [
        file
        for file in top.values()
        if file.name.endswith(TEXT) and file.size <= TEXT_BYTES and file not in weights
    ]
    return [*sorted(text, key=lambda file: file.name != CONFIG), *weights]


def _shards(top: dict[str, RemoteFile]) -> list[RemoteFile]:
    parts = [file for name, file in sorted(top.items()) if SHARD.fullmatch(name)]
    return [*parts, top[INDEX]] if INDEX in top else []


# --- getting it -----------------------------------------------------------------------------------


def _make(name: HubName, listing: Listing, files: list[RemoteFile], place: Path) -> Path:
    """The finished model folder, inside the work folder `place`."""
    incoming, made = place / "incoming", place / "model"
    _check_space(name, files, place)
    _download(name, listing.commit, files[0], incoming)  # the config: refused before the rest comes
    own = _is_own(name, incoming)
    for file in files[1:]:
        _download(name, listing.commit, file, incoming)
    receipt = Receipt(name.id, listing.commit, _endpoint(), "audiossl", listing.licence)
    receipt.downloaded = {file.name: {"size": file.size, file.kind: file.digest} for file in files}
    made.mkdir()
    if own:
        for file in files:
            (incoming / file.name).rename(made / file.name)
    else:
        receipt.layout = _convert(name, listing, incoming, made)
    verify(made)
    hub_cache.write_receipt(made, receipt)
    return made


def _check_space(name: HubName, files: list[RemoteFile], place: Path) -> None:
    needed, free = sum(file.size for file in files), shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            f"{name} needs {needed / 1e6:.1f} MB, {place.parent} has {free / 1e6:.1f} MB free: make"
            f" room, or {hub_cache.HINT}"
        )


def _download(name: HubName, commit: str, file: RemoteFile, incoming: Path) -> None:
    """One file, compared with the Hub's digest.

    The client takes up a line that was cut (its early versions don't); when it has given up, or the
    content is wrong, the file is fetched once more from the start.
    """
    from huggingface_hub import hf_hub_download

    for again in (False, True):
        try:
            with _asking_the_disk(incoming.parent):
                hf_hub_download(
                    name.id,
                    file.name,
                    revision=commit,
                    local_dir=incoming,
                    force_download=again,
                    library_name="audiossl",
                    library_version=audiossl.__version__,
                )
        except Exception as error:
            if again or not _transient(error):
                raise
            continue
        found = _digest(incoming / file.name, file.kind)
        if found == file.digest:
            return
    raise ModelError(
        f"{name}: {file.name} arrived damaged ({file.kind} {found[:12]}..., the Hub says"
        f" {file.digest[:12]}...): something between here and {_host()} changes files"
    )


def _digest(path: Path, kind: str) -> str:
    if kind == "sha256":
        return hub_cache.sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _is_own(name: HubName, incoming: Path) -> bool:
    """Whether the config is this program's. Raises ModelError when it asks for code to run.

    Unless it is a published checkpoint that is known to: its layout says what is left alone.
    """
    data = read_json(incoming / CONFIG)
    own = "format" in data
    try:
        refuse_code(data)
    except ModelError:
        from audiossl.hub import convert

        origin = convert.origin(f"{hub_cache.PREFIX}{name.id}")
        ignored = convert.layouts()[origin.layout].ignored if origin and not own else ()
        refuse_code({key: value for key, value in data.items() if key not in ignored})
    return own


def _convert(name: HubName, listing: Listing, incoming: Path, made: Path) -> str:
    """Turn a published layout into a model folder; returns the layout's name."""
    from audiossl.hub import convert
    from audiossl.model import write_folder

    origin = convert.origin(f"{hub_cache.PREFIX}{name.id}")
    known = {
        "licence": listing.licence or "unknown: see the model's page",
        "source": f"{_endpoint()}/{name.id}",
    }
    checkpoint = convert.read(incoming, overrides={} if origin else known)
    converted = convert.convert(checkpoint, name=name.id, origin=origin)
    write_folder(converted.tensors, converted.config, made)
    return converted.layout


# --- errors ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
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
def _asking_the_disk(place: Path) -> Iterator[None]:
    """Not everything that fails on a full disk says so: look at the disk."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) is None and shutil.disk_usage(place).free < LITTLE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


@contextlib.contextmanager
def _explained(name: HubName, cache: Path) -> Iterator[None]:
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
            raise OutputError(
                f"{name}: no room in {cache}: make some, or {hub_cache.HINT}"
            ) from error
        if number in DENIED:
            reason = os.strerror(number)
            raise OutputError(f"model cache {cache}: {reason}: {hub_cache.HINT}") from error
        raise ModelError(f"{name}: {_reason(error, name)}") from error


def _reason(error: Exception, name: HubName) -> str:
    from huggingface_hub import errors

    page = f"{_endpoint()}/{name.id}"
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return f"gated: accept its terms at {page}, then set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {name.revision!r}: see {page}/tree/main"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such model on {_host()}, or a private one: check the name, or set HF_TOKEN"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "a file that the Hub lists is not there: try again later"
    if status in (401, 403):
        return f"{_host()} refuses access ({status}): check HF_TOKEN, and {page}"
    if status == 429:
        return f"{_host()} gets too many requests from here (429): wait a while, or set HF_TOKEN"
    if status is not None:
        return f"{_host()} answers with an error ({status}): try again later"
    if isinstance(error, OSError | _http_error()):
        return (
            f"cannot get it from {_host()} ({_innermost(error)}): check the network, the proxy"
            " settings and HF_ENDPOINT, then run it again"
        )
    return f"the answer of {_host()} is not the Hub's ({_innermost(error)}): check HF_ENDPOINT"


def _transient(error: Exception) -> bool:
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


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _host() -> str:
    return urlsplit(_endpoint()).netloc or _endpoint()
