"""Shards: tar files of clips in the WebDataset format, for sets of very many clips.

    set-000000.tar    00000000-dog.flac  00000000-dog.json  00000001-rain.flac  00000001-rain.json

The JSON holds the columns of a manifest's row: {"labels": ["dog"], "fold": "1", "group": ...}; text
and numbers of other names become `Row.extra`. {"clips": [{...}, {...}]} describes several clips of
one sound. A `.cls` file holds a label, too.

The library `webdataset` writes the shards and expands names in braces. It can also read them, but
as a stream whose order depends on the number of workers. Our runs must resume from (epoch,
position) with the same bytes, so here every clip has a number and is read from its place in the
tar.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from audiossl.atomic import atomic_write, sync
from audiossl.audio.names import SUFFIXES
from audiossl.data.rows import COLUMNS, Member, Row
from audiossl.data.tar_index import SUFFIX as INDEX
from audiossl.data.tar_index import Slice, index
from audiossl.errors import InputError, OutputError, UsageError

TAR = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SHARD_BYTES = 1 << 30
MAX_SHARDS = 10**6  # most shards that one pattern may name
KEY_CHARACTERS = 64  # length of a file's name in its key
INSTALL = "pip install 'audiossl-toolkit[webdataset]'"


def named(place: Path) -> bool:
    """Whether a path means shards: a tar, a pattern of tars, or a folder that holds tars."""
    if place.is_dir():
        return bool(_tars(place))
    return place.name.lower().endswith((TAR, *PACKED))


def read(place: Path) -> list[Row]:
    """Rows of all clips in the shards: one tar, names in braces, a quoted glob, or a folder.

    Raises UsageError, or InputError naming the shard that is cut, damaged or not to be trusted.
    """
    rows: list[Row] = []
    for path in expand(place):
        for name, offset, size, facts in index(path):
            where = f"{path}/{name}"
            for clip in _clips(facts, where):
                row = _row(path, clip, where)
                member = Member(name, offset, size)
                rows.append(replace(row, number=len(rows), member=member))
    if not rows:
        raise UsageError(f"{place}: no audio in these shards")
    return rows


def expand(place: Path) -> list[Path]:
    """The tar files that a name stands for, in order. Raises UsageError."""
    text = str(place)
    if text.lower().endswith(PACKED):
        raise UsageError(f"{text}: a compressed tar cannot be read in place: unpack it to {TAR}")
    if place.is_dir():
        loose = [path.name for path in sorted(place.iterdir()) if path.suffix.lower() in SUFFIXES]
        if loose:
            raise UsageError(
                f"{text}: holds shards and loose audio ({loose[0]}): name the shards, such as"
                f" '{text}/*{TAR}'"
            )
        return _tars(place)
    if place.is_file():
        return [place]
    names = _braces(text) if "{" in text else sorted(glob.glob(text)) or [text]
    missing = [name for name in names if not os.path.isfile(name)]
    if missing:
        more = ", ..." if len(missing) > 1 else ""
        raise UsageError(f"{text}: {len(missing)} of {len(names)} missing: {missing[0]}{more}")
    return [Path(name) for name in names]


def write(
    rows: Iterable[Row],
    folder: Path,
    name: str,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> list[Path]:
    """Write clips as NAME-000000.tar, NAME-000001.tar and so on.

    rows: the clips; those of one sound are written together and share it.
    folder: where the shards are written; it must exist.
    name: NAME, a file's name.
    shard_bytes: a shard ends after the sound with which it reaches this size.
    overwrite: whether shards of this name may be replaced.

    Sounds are copied as they are. The same rows give the same bytes, because no time is written.
    All shards are written under other names first: after a failure the old ones are still there,
    and the rows may be in the very shards that they replace.

    Returns the paths of the shards. Raises InputError if a file cannot be read, OutputError if a
    shard cannot be written or may not be replaced, UsageError if the library is missing.
    """
    if name != os.path.basename(name) or name in ("", os.curdir, os.pardir):
        raise UsageError(f"--name {name!r}: shards are files in one folder")
    try:
        old = _numbered(folder, name)
        if old and not overwrite:
            raise OutputError(f"{old[0]} exists: --on-exists overwrite, or another --name")
        with tempfile.TemporaryDirectory(prefix=".audiossl-", dir=folder) as hidden:
            new = list(_written(rows, Path(hidden), name, shard_bytes))
            return _moved(new, folder, old)
    except OSError as error:
        raise OutputError(f"cannot write {folder}/{name}-*{TAR}: {error.strerror}") from error


def _written(rows: Iterable[Row], folder: Path, name: str, shard_bytes: int) -> Iterator[Path]:
    try:
        from webdataset.writer import TarWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(f"shards are written by the webdataset library: {INSTALL}") from error
    sounds = _by_file(rows)
    top = os.path.commonpath([os.path.abspath(clips[0].path.parent) for clips in sounds])
    waiting = enumerate(sounds)
    number, item = 0, next(waiting, None)
    while item is not None:
        path = folder / f"{name}-{number:06d}{TAR}"
        with atomic_write(path) as file, TarWriter(file, encoder=False, mtime=0) as writer:
            while item is not None and file.tell() < shard_bytes:
                writer.write(_sample(*item, top))
                item = next(waiting, None)
        yield path
        number += 1


def _numbered(folder: Path, name: str) -> list[Path]:
    """The shards of this name: `esc-50-000000.tar` belongs to `esc-50`, not to `esc`."""
    pattern = re.compile(rf"{re.escape(name)}-[0-9]{{6}}{re.escape(TAR)}")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def _moved(new: list[Path], folder: Path, old: list[Path]) -> list[Path]:
    """Replace old shards by new ones; old ones for which there is no new one are removed last."""
    for path in old:
        path.with_name(path.name + INDEX).unlink(missing_ok=True)
    moved = [path.replace(folder / path.name) for path in new]
    for path in old:
        if path not in moved:
            path.unlink()
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        sync(folder)
    return moved


def _tars(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(TAR) and not path.name.startswith(".") and path.is_file()
    )


def _braces(text: str) -> list[str]:
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", text)
    if math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > MAX_SHARDS:
        raise UsageError(f"{text}: stands for more than {MAX_SHARDS:,} shards")
    try:
        from webdataset.shardlists import expand_urls  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"{text}: names in braces need the webdataset library ({INSTALL}); a folder of shards"
            " or a quoted * does not"
        ) from error
    try:
        return expand_urls(text)
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from error


def _by_file(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows grouped by sound; the sounds stay in order."""
    sounds: dict[str, list[Row]] = {}
    for row in rows:
        sounds.setdefault(row.name, []).append(row)
    if not sounds:
        raise UsageError("no clip to write")
    return list(sounds.values())


def _sample(number: int, clips: list[Row], top: str) -> dict[str, Any]:
    """One sound as webdataset writes it."""
    first = clips[0]
    suffix = Path(first.name).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{first.name}: {suffix or 'no suffix'}: not a name of audio")
    file = first.extra.get("file") or os.path.relpath(first.name, top)
    stem = Path(file).name.partition(".")[0]
    key = f"{number:08d}-{re.sub('[^A-Za-z0-9_-]+', '_', stem)[:KEY_CHARACTERS]}"
    facts = [_described(row) for row in clips]
    said = {**facts[0], "file": file} if len(facts) == 1 else {"clips": facts, "file": file}
    content = json.dumps(said, sort_keys=True).encode("ascii")
    return {"__key__": key, suffix[1:]: _content(first), "json": content}


def _described(row: Row) -> dict[str, Any]:
    facts = {key: getattr(row, key) for key in COLUMNS if key != "path"}
    extra = {key: value for key, value in row.extra.items() if key not in ("file", "clips")}
    return {**extra, **{key: value for key, value in facts.items() if value not in ("", (), None)}}


def _content(row: Row) -> bytes:
    try:
        if row.member is None:
            return row.path.read_bytes()
        with Slice(row.path, row.member.offset, row.member.size) as file:
            return file.readall()
    except OSError as error:
        raise InputError(f"{row.name}: {error.strerror}", code="unreadable") from error


def _clips(facts: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The facts of each clip of a sound."""
    clips = facts.get("clips", [{}])
    if not isinstance(clips, list) or not all(isinstance(clip, dict) for clip in clips):
        raise _bad(where, "clips", "a list of objects", clips)
    shared = {key: value for key, value in facts.items() if key != "clips"}
    return [{**shared, **clip} for clip in clips]


def _row(path: Path, facts: dict[str, Any], where: str) -> Row:
    start, end = (_seconds(facts.get(key), key, where) for key in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise _bad(where, "end", f"more than start {start or 0:g}", end)
    fold, group, split = (_text(facts.get(key), key, where) for key in ("fold", "group", "split"))
    if split not in ("", "train", "valid", "test"):
        raise _bad(where, "split", "train, valid or test", split)
    labels, known = (_names(facts.get(key), key, where) for key in ("labels", "known"))
    extra = {
        key: str(value)
        for key, value in facts.items()
        if key not in COLUMNS and isinstance(value, str | int | float)
    }
    return Row(path, start, end, labels, known, fold, group, split, extra=extra)


def _names(value: Any, key: str, where: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _bad(where, key, "a list of names", value)
    return tuple(dict.fromkeys(names))


def _text(value: Any, key: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _bad(where, key, "text", value)
    return str(value)


def _seconds(value: Any, key: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise _bad(where, key, "seconds", value)
    return float(value)


def _bad(where: str, key: str, expected: str, value: Any) -> InputError:
    shown = repr(value)
    shown = shown if len(shown) < 60 else shown[:57] + "..."
    return InputError(f"{where}: {key}: expected {expected}, got {shown}", code="corrupt")
