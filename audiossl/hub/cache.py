"""Models from the Hub that are here: one finished folder a commit, with a receipt of its contents.

    CACHE/hub/OWNER--REPO/pins.json     revision -> the commit it stood for when it was pulled
    CACHE/hub/OWNER--REPO/COMMIT/       a model folder, and receipt.json: sha256 of each file

CACHE is AUDIOSSL_CACHE or the user's cache folder. A folder appears under its commit's name when it
is complete, so a reader needs no lock and may sit on a read-only cache. No torch, no network.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from audiossl.atomic import atomic_write
from audiossl.caches import HINT, root, sha256
from audiossl.errors import ModelError, OutputError
from audiossl.hub.strict_json import read_json

PREFIX = "hf:"
MAIN = "main"  # the revision that a name without one stands for
PINS, RECEIPT = "pins.json", "receipt.json"
LONGEST = 300  # characters of a name: the Hub's own limit for owner/repo is 96

_PART = r"\w(?:[\w.-]*\w)?"
_NAME = re.compile(rf"{PREFIX}({_PART})/({_PART})(?:@([^\s@]+))?\Z", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_ABBREVIATED = re.compile(r"[0-9a-f]{7,40}\Z")


@dataclass(frozen=True)
class HubName:
    """`hf:owner/repo@revision`; `revision` is a branch, a tag or a commit."""

    owner: str
    repo: str
    revision: str = MAIN

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.repo}"

    @property
    def commit(self) -> str | None:
        """The revision, where it is a commit in full."""
        return self.revision if _COMMIT.match(self.revision) else None

    def at(self, commit: str) -> HubName:
        return HubName(self.owner, self.repo, commit)

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{PREFIX}{self.id}{revision}"


@dataclass
class Receipt:
    """What was downloaded, and what the folder must hold.

    `files`: of the folder, name -> {"size": bytes, "sha256": hex}. `downloaded`: what came from the
    Hub, name -> {"size": bytes, "sha256": hex} or "sha1" of git, where the Hub has no other.
    `layout`: "audiossl", or the layout the folder was converted from.
    """

    repo: str
    commit: str
    endpoint: str
    layout: str
    licence: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    downloaded: dict[str, dict[str, Any]] = field(default_factory=dict)


def parse(name: str) -> HubName:
    """The parts of `hf:owner/repo[@revision]`. Raises ModelError."""
    match = _NAME.match(name)
    if not match or ".." in name or "--" in f"{match[1]}/{match[2]}" or len(name) > LONGEST:
        raise ModelError(
            f"{name!r} names no model of the Hub: expected {PREFIX}owner/repo[@revision]"
        )
    return HubName(match[1], match[2], match[3] or MAIN)


def folder_of(name: HubName, commit: str) -> Path:
    return _repo_folder(name) / commit


def find(name: HubName) -> Path | None:
    """The folder of a model that is in the cache. Commits may be abbreviated to 7 digits."""
    folder = _repo_folder(name)
    commit = pins(name).get(name.revision)
    if commit is None and _ABBREVIATED.match(name.revision):
        commits = [item.name for item in _folders(folder) if item.name.startswith(name.revision)]
        commit = commits[0] if len(commits) == 1 else None
    return folder / commit if commit and (folder / commit / RECEIPT).is_file() else None


def pins(name: HubName) -> dict[str, str]:
    """Revision -> commit, of one repository."""
    path = _repo_folder(name) / PINS
    try:
        data = read_json(path) if path.is_file() else {}
    except ModelError:  # nothing is lost: commits are still found, and the next pull writes it anew
        return {}
    return {key: value for key, value in data.items() if _COMMIT.match(str(value))}


def pin(name: HubName, commit: str) -> None:
    """Remember what commit the revision stands for, until the next pull."""
    known = pins(name)
    if name.commit is None and known.get(name.revision) != commit:
        with atomic_write(_repo_folder(name) / PINS) as file:
            file.write(_json({**known, name.revision: commit}))


def entries() -> list[HubName]:
    """Every model in the cache, by the shortest name that leads to it."""
    found = []
    for repo in _folders(root() / "hub"):
        owner, separator, model = repo.name.partition("--")
        if not separator:
            continue
        name = HubName(owner, model)
        revisions = {commit: revision for revision, commit in sorted(pins(name).items())}
        if MAIN in pins(name):
            revisions[pins(name)[MAIN]] = MAIN
        for folder in _folders(repo):
            if (folder / RECEIPT).is_file() and _COMMIT.match(folder.name):
                found.append(name.at(revisions.get(folder.name, folder.name)))
    return found


def remove(name: HubName) -> list[Path]:
    """Take a model out of the cache: one revision, or all of them when `name` has none.

    Returns the folders that are gone. Raises ModelError when there is none.
    """
    repo = _repo_folder(name)
    folder = find(name)
    gone = [folder] if name.revision != MAIN else _folders(repo)
    gone = [item for item in gone if item is not None]
    if not gone:
        raise ModelError(f"{name} is not in the cache {root()}: see `audiossl models ls`")
    with lock(name), writing(repo):
        for item in gone:
            _discard(item)
        kept = {key: commit for key, commit in pins(name).items() if (repo / commit).is_dir()}
        with atomic_write(repo / PINS) as file:
            file.write(_json(kept))
    return gone


# --- receipts -------------------------------------------------------------------------------------


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Record size and sha256 of every file in `folder`; the receipt itself is written last."""
    for path in sorted(folder.iterdir()):
        receipt.files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    with atomic_write(folder / RECEIPT) as file:
        file.write(_json(asdict(receipt)))


def read_receipt(folder: Path) -> Receipt | None:
    """The receipt of a model folder; None where there is none. Raises ModelError."""
    path = folder / RECEIPT
    if not path.is_file():
        return None
    data = read_json(path)
    try:
        receipt = Receipt(**data)
        sound = all(
            Path(name).name == name
            and isinstance(entry["size"], int)
            and len(entry["sha256"]) == 64
            for name, entry in receipt.files.items()
        )
    except (TypeError, AttributeError, KeyError):
        sound = False
    if not sound:
        raise ModelError(f"{path}: not a receipt of this program: {_mend(folder)}")
    return receipt


def check_receipt(folder: Path, receipt: Receipt) -> None:
    """Compare every file of `folder` with its receipt. Raises ModelError naming the damaged one."""
    for name, entry in receipt.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["size"]:
                raise ModelError(
                    f"{path}: {size} bytes instead of {entry['size']}: {_mend(folder)}"
                )
            if sha256(path) != entry["sha256"]:
                raise ModelError(f"{path}: damaged: sha256 has changed: {_mend(folder)}")
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}: {_mend(folder)}") from error


def _mend(folder: Path) -> str:
    """What to do about a damaged folder."""
    owner, separator, repo = folder.parent.name.partition("--")
    if separator and _COMMIT.match(folder.name):
        return f"run `audiossl models pull {HubName(owner, repo, folder.name)}`"
    return "get it again from where it came"


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def lock(name: HubName) -> Iterator[None]:
    """One writer a repository, among all processes of this machine."""
    from filelock import FileLock

    path = root() / "hub" / ".locks" / f"{name.owner}--{name.repo}"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path)
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextmanager
def workplace(name: HubName) -> Iterator[Path]:
    """An empty folder on the cache's own disk, gone afterwards. Call it with the lock held."""
    repo = _repo_folder(name)
    with writing(repo):
        repo.mkdir(parents=True, exist_ok=True)
        for left in (*repo.glob(".new-*"), *repo.glob(".old-*")):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        folder = repo / f".new-{uuid.uuid4().hex[:12]}"
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(made: Path, folder: Path) -> None:
    """Give the finished folder `made` its final name; a damaged one that has it makes way."""
    with writing(folder):
        if folder.exists():
            _discard(folder)
        made.rename(folder)


def _discard(folder: Path) -> None:
    """Remove a folder so that it is never half there under its own name."""
    aside = folder.with_name(f".old-{uuid.uuid4().hex[:12]}")
    folder.rename(aside)
    shutil.rmtree(aside)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"model cache {path}: {error.strerror or error}: {HINT}") from error


def _repo_folder(name: HubName) -> Path:
    return root() / "hub" / f"{name.owner}--{name.repo}"


def _folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(item for item in place.iterdir() if item.is_dir() and item.name[0] != ".")


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
