"""Description of a data set: where it is, who made it, and how its clips are listed."""

from __future__ import annotations

import contextlib
import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from audiossl.data.rows import Row
from audiossl.errors import UsageError

ENVIRONMENT = "AUDIOSSL_DATA"
INSTEAD = "or name its own folder (data.root of a recipe, --root of `audiossl data`)"


@dataclass(frozen=True)
class Dataset:
    """A published set of clips.

    folders    usual names of its folder
    signs      patterns of files and folders; a folder with one of them holds the set
    expected   its layout in words, for errors
    read       the folder -> its rows, as the set's own tables say; files need not exist
    counts     clips of the complete release, by fold or else by split
    checksums  "md5:..." or "sha256:..." of files of the release: tables and archives by name; of a
               folder "audio/" what `md5sum audio/* | LC_ALL=C sort -k 2 | sha256sum` gives
    gaps       whether copies usually lack clips; then missing clips are no error
    by_parts   whether its parts are distributed, and usually downloaded, one by one
    note       what one should know before using its splits
    """

    name: str
    title: str
    licence: str
    citation: str
    page: str
    folders: tuple[str, ...]
    signs: tuple[str, ...]
    expected: str
    read: Callable[[Path], Iterable[Row]]
    counts: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    gaps: bool = False
    by_parts: bool = False
    note: str = ""

    def find(self, root: str | os.PathLike[str] | None = None) -> Path:
        """The set's folder: `root` or a folder in it; without `root`, below AUDIOSSL_DATA.

        Raises UsageError saying what was expected where.
        """
        places = [Path(root).expanduser()] if root else data_folders()
        for place in places:
            for folder in (place, *(place / name for name in self.folders)):
                if any(any(folder.glob(sign)) for sign in self.signs):
                    return folder
        raise UsageError(self._not_found(root, places))

    def _not_found(self, root: object, places: Sequence[Path]) -> str:
        names = ", ".join(self.folders)
        if root:
            return f"{root}: no {self.title} there: expected {self.expected}"
        if not data_folders():
            return (
                f"{self.name}: {ENVIRONMENT} is not set: it names the folder (or folders, joined by"
                f" {os.pathsep!r}) that holds {names}; {INSTEAD}"
            )
        where = os.pathsep.join(str(place) for place in places)
        return (
            f"{self.name}: not in {ENVIRONMENT} ({where}): expected one of the folders {names}, in"
            f" it {self.expected}; {INSTEAD}"
        )

    def rows(self, folder: Path) -> tuple[list[Row], list[str]]:
        """(rows whose files are there, names of the files that are missing) of the set in `folder`.

        Raises UsageError.
        """
        present = _Present()
        rows, missing = [], []
        for row in self.read(folder):
            if row.member is not None or row.path in present:
                rows.append(replace(row, number=len(rows)))
            else:
                missing.append(os.path.relpath(row.path, folder))
        if not rows:
            raise UsageError(f"{folder}: {self.title}: none of its {len(missing)} files is there")
        return rows, missing

    def parts(self, rows: Iterable[Row]) -> dict[str, tuple[int, int]]:
        """(clips here, clips of the complete release) by fold or split; 0: not known."""
        here = Counter(row.fold if row.fold in self.counts else row.split for row in rows)
        names = sorted({*here, *self.counts}, key=lambda name: (len(name), name))
        return {name: (here[name], self.counts.get(name, 0)) for name in names}

    @property
    def source(self) -> dict[str, str]:
        """The set's entry in a model's config."""
        return {"name": self.title, "licence": self.licence, "page": self.page}


class _Present:
    """Which files exist: each folder is listed once, since there may be millions of rows."""

    def __init__(self) -> None:
        self.folders: dict[Path, set[str]] = {}

    def __contains__(self, path: Path) -> bool:
        if path.parent not in self.folders:
            try:
                names = set(os.listdir(path.parent))
            except OSError:
                names = set()
            self.folders[path.parent] = names
        return path.name in self.folders[path.parent]


def data_folders() -> list[Path]:
    """The folders that AUDIOSSL_DATA names."""
    given = os.environ.get(ENVIRONMENT, "").split(os.pathsep)
    return [Path(name).expanduser() for name in given if name]


def table(path: Path, columns: Sequence[str], skip: str = "") -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header, as {column: cell}.

    path: the file.
    columns: columns that must be there.
    skip: how comment lines begin; empty: there are none.

    Raises UsageError naming file and line.
    """
    with _opened(path) as file:
        lines = (line for line in file if not (skip and line.startswith(skip)))
        reader = csv.DictReader(lines, strict=True, skipinitialspace=True)
        names = reader.fieldnames or []
        lacking = [name for name in columns if name not in names]
        if lacking:
            found = ",".join(names)[:200] or "nothing"
            raise UsageError(
                f"{path}: no column {lacking[0]!r} in its first line: expected"
                f" {','.join(columns)}, got {found}"
            )
        yield from _complete(reader, path)


def records(path: Path, columns: Sequence[str], skip: str = "") -> Iterator[dict[str, str]]:
    """Like `table`, for a file without a header."""
    with _opened(path) as file:
        lines = (line for line in file if not (skip and line.startswith(skip)))
        reader = csv.DictReader(lines, columns, strict=True, skipinitialspace=True)
        yield from _complete(reader, path)


def _complete(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    try:
        for record in reader:
            if None in record or None in record.values():
                message = f"{path}, row {reader.line_num}: more or fewer cells than columns"
                raise UsageError(message)
            yield record
    except csv.Error as error:
        raise UsageError(f"{path}, after row {reader.line_num}: {error}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
