"""Positions of the sounds in a WebDataset tar, and reading one in place.

A tar is read through once. The index is kept beside it, or in the cache folder if that is not
writable, and is used until the tar's size or time of change differs. Nothing is ever unpacked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audiossl import caches
from audiossl.audio.names import SUFFIXES
from audiossl.errors import AudiosslError, InputError, OutputError

BLOCK = 512  # bytes: what a tar file consists of
MAX_JSON = 1 << 20  # bytes of one clip's description, and of a header's long name
SUFFIX = ".index"
VERSION = 1

# A sound: its member's name, offset and size, and the facts in its JSON.
Entry = tuple[str, int, int, dict[str, Any]]

# The files of one sound share their name up to its first dot.
_KEY = re.compile(r"(?P<key>(?:.*/)?[^./][^./]*)\.(?P<suffix>[^/]+)", re.DOTALL)


class Slice(io.RawIOBase):
    """A part of a file, as a file of its own.

    path: the file.
    offset: first byte of the part.
    size: bytes.

    Each slice has its own descriptor, so that processes do not disturb each other. Raises OSError.
    """

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(view) or 0
        self._position += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def index(path: Path) -> list[Entry]:
    """The sounds of a tar in order. Raises InputError naming the tar, see `scan`."""
    try:
        status = path.stat()
        stamp = {"version": VERSION, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        for place in _places(path):
            if (found := _read(place, stamp)) is not None:
                return found
        entries = scan(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", code="unreadable") from error
    _write(path, {**stamp, "entries": entries})
    return entries


def scan(path: Path) -> list[Entry]:
    """Read through a tar.

    Raises InputError if it is not a tar, is cut, or holds something that a set of clips does not
    need: links, devices, names that lead elsewhere, two sounds of one key. Raises OSError.
    """
    sounds: dict[str, tuple[str, int, int]] = {}
    said: dict[str, dict[str, Any]] = {}
    with _Bounded(path, 0, path.stat().st_size) as file:
        for name, offset, size in _files(file, path):
            if (found := _KEY.fullmatch(name)) is None:
                continue
            key, suffix = found["key"], found["suffix"].lower()
            if f".{suffix}" in SUFFIXES:
                if key in sounds:
                    raise _damaged(path, f"two sounds have the key {key!r}")
                sounds[key] = (name, offset, size)
            elif suffix in ("json", "cls"):
                if size > MAX_JSON:
                    raise _damaged(path, f"{name!r} has {size} bytes: no description of a clip")
                file.seek(offset)
                facts = _facts(file.read(size), suffix, f"{path}/{name}")
                said[key] = {**said.get(key, {}), **facts}
    return [(*place, said.get(key, {})) for key, place in sounds.items()]


class _Bounded(Slice):
    """A slice that refuses long reads: tarfile reads as much of a long name as a header claims."""

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= MAX_JSON:
            raise tarfile.ReadError("a name or description of over 1 MB")
        return super().read(size) or b""


def _files(file: Slice, path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every file in a tar, whose end must be there as well."""
    whole = path.stat().st_size
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            for member in tar:
                _check(member, path, whole)
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if member.isreg():
                    yield member.name, member.offset_data, member.size
                tar.members.clear()  # type: ignore[attr-defined]  # memory stays flat
    except (tarfile.TarError, ValueError, EOFError, RecursionError) as error:
        raise _damaged(path, f"not a tar, or cut: {error}") from error
    _check_end(file, end, path, whole)


def _check(member: tarfile.TarInfo, path: Path, whole: int) -> None:
    name = member.name
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
        raise _damaged(path, f"the name {name!r} leads elsewhere")
    if not (member.isdir() or (member.isreg() and not member.issparse())):
        raise _damaged(path, f"{name!r} is a link, a device or has holes")
    there = whole - member.offset_data
    if not 0 <= member.size <= there:
        raise _damaged(path, f"cut: {name!r} has {member.size} bytes, {there} are there")


def _check_end(file: Slice, end: int, path: Path, whole: int) -> None:
    """Check that a tar ends with blocks of zeros and nothing follows; tarfile does not."""
    if end + BLOCK > whole:
        raise _damaged(path, "cut: the mark of its end is missing")
    file.seek(end)
    while block := file.read(1 << 16):
        if block.strip(b"\0"):
            raise _damaged(path, f"damaged, or several tars in one: byte {end} begins no file")


def _facts(content: bytes, suffix: str, where: str) -> dict[str, Any]:
    """The facts in a description: a JSON object, or a label."""
    try:
        facts = json.loads(content) if suffix == "json" else {"labels": [content.decode().strip()]}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot be read: {error}", code="corrupt") from None
    if not isinstance(facts, dict):
        raise InputError(f"{where}: expected an object", code="corrupt")
    return facts


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}", code="corrupt")


def _places(path: Path) -> Iterator[Path]:
    """Where a tar's index may be."""
    yield path.with_name(path.name + SUFFIX)
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    with contextlib.suppress(OutputError):  # no home folder
        yield caches.root() / "shards" / f"{name[:32]}{SUFFIX}"


def _read(place: Path, stamp: Mapping[str, int]) -> list[Entry] | None:
    """The entries of an index; None if the tar has changed since, or they cannot be trusted."""
    try:
        if place.stat().st_size > stamp["size"]:  # an index is smaller than its tar
            return None
        values = json.loads(place.read_bytes())
        if {key: values.get(key) for key in stamp} != dict(stamp):
            return None
        entries = [
            (str(name), int(offset), int(size), dict(facts))
            for name, offset, size, facts in values["entries"]
        ]
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    whole = stamp["size"]
    inside = all(0 <= at <= whole and 0 <= size <= whole - at for _, at, size, _ in entries)
    return entries if inside else None


def _write(path: Path, values: Mapping[str, Any]) -> None:
    from audiossl.atomic import atomic_write

    for place in _places(path):
        with contextlib.suppress(AudiosslError, OSError):  # without an index it only takes longer
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(place) as file:
                file.write(json.dumps(values).encode("ascii"))
            return
