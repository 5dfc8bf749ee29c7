"""Models from the Hugging Face Hub into the cache: pinned, checked, converted once, whole.

    revision -> commit and list of files (one request) -> a work folder -> sha256 of every file
    against the Hub's list -> converted where it is in a published layout -> receipt -> final name

Only safetensors, JSON and text are downloaded, and no code ever runs. The Hub's own client checks
the length of a file and no more, so the content is checked here. One process a repository works,
the others wait and find the result.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import audiossl
from audiossl import caches
from audiossl.errors import ModelError, OutputError
from audiossl.hub import cache as hub_cache
from audiossl.hub.answers import asking_the_disk, endpoint, explained, host, hushed, transient
from audiossl.hub.cache import HubName, Receipt
from audiossl.hub.config import CONFIG, refuse_code
from audiossl.hub.folder import WEIGHTS, verify
from audiossl.hub.strict_json import read_json

log = logging.getLogger("audiossl")

OFFLINE = ("AUDIOSSL_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
DELAYS = (0.5, 2.0)  # seconds before the second and the third try; the client itself retries files
TIMEOUT = 10.0  # seconds without an answer to the first request
TEXT = (".json", ".txt")
TEXT_BYTES = 32 * 2**20  # of one JSON or text file: a large tokenizer has a few MB
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
INDEX = f"{WEIGHTS}.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


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
    with explained(name, caches.root()), hushed():
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
            if delay is None or not transient(error):
                raise
        time.sleep(delay)
    commit = str(info.sha)
    if name.at(commit).commit is None or name.commit not in (None, commit):
        raise ModelError(f"{name}: {host()} names no commit: is HF_ENDPOINT right?")
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
    receipt = Receipt(name.id, listing.commit, endpoint(), "audiossl", listing.licence)
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
            f" room, or {caches.HINT}"
        )


def _download(name: HubName, commit: str, file: RemoteFile, incoming: Path) -> None:
    """One file, compared with the Hub's digest.

    The client takes up a line that was cut (its early versions don't); when it has given up, or the
    content is wrong, the file is fetched once more from the start.
    """
    from huggingface_hub import hf_hub_download

    for again in (False, True):
        try:
            with asking_the_disk(incoming.parent):
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
            if again or not transient(error):
                raise
            continue
        found = _digest(incoming / file.name, file.kind)
        if found == file.digest:
            return
    raise ModelError(
        f"{name}: {file.name} arrived damaged ({file.kind} {found[:12]}..., the Hub says"
        f" {file.digest[:12]}...): something between here and {host()} changes files"
    )


def _digest(path: Path, kind: str) -> str:
    if kind == "sha256":
        return caches.sha256(path)
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
    from audiossl.hub import checkpoint_files, convert
    from audiossl.hub.writing import write_folder

    origin = convert.origin(f"{hub_cache.PREFIX}{name.id}")
    known = {
        "licence": listing.licence or "unknown: see the model's page",
        "source": f"{endpoint()}/{name.id}",
    }
    checkpoint = checkpoint_files.read(incoming, overrides={} if origin else known)
    converted = convert.convert(checkpoint, name=name.id, origin=origin)
    write_folder(converted.tensors, converted.config, made)
    return converted.layout


# --- errors ---------------------------------------------------------------------------------------
