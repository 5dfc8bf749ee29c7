"""The one table format: a CSV file with a header, one row a clip.

A folder of audio files (folder.py), and shards (shards.py), give the same rows.

    path,start,end,labels,known,fold,group,split
    dogs/a.wav,,,Dog;Bark,,1,a,

path    relative to the manifest's folder (or to `root`), never above it; required; spaces are kept
start   first second of the clip in its file; empty: the beginning
end     last second; empty: the end of the file
labels  joined by ";"; empty: none of the classes
known   classes that were judged for this row, joined by ";"; empty: all of them.
        A class that is neither in `labels` nor in `known` is unknown (target -1), not absent
fold    of the data set's own protocol
group   recordings that belong together (one source, one speaker, one place): never split
split   "train", "valid" or "test": only rows of the first, or without a split, are trained on
Any further column is kept in `Row.extra`.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from audiossl.audio.names import SUFFIXES
from audiossl.data.rows import COLUMNS, Row, inside
from audiossl.errors import UsageError

SEPARATOR = ";"
MAX_CELL = 1 << 20  # characters
MAX_SHOWN = 200  # characters of a first line


def write(path: str | os.PathLike[str], rows: Iterable[Row], root: Path | None = None) -> None:
    """Write rows as a manifest.

    path: the file to write.
    rows: the clips.
    root: the folder to which the paths are relative; None: the folder of `path`.
    """
    from audiossl.atomic import atomic_write

    content = encode(rows, root or Path(path).parent)
    with atomic_write(Path(path)) as file:
        file.write(content)


def encode(rows: Iterable[Row], root: Path) -> bytes:
    """The content of a manifest whose paths are relative to `root`. Raises UsageError if a row does
    not fit into a table."""
    rows = list(rows)
    root = Path(os.path.abspath(root))
    extra = sorted({name for row in rows for name in row.extra})
    lines = _Lines()
    table = csv.writer(lines, lineterminator="\r\n")
    table.writerow([*COLUMNS, *extra])
    for row in rows:
        table.writerow(_cells(row, root) + [row.extra.get(name, "") for name in extra])
    return "".join(lines.parts).encode("utf-8", "surrogateescape")


class _Lines:
    r"""Collects lines from csv.writer, which quotes \r only if its own lines end with \r\n."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, line: str) -> None:
        self.parts.append(line.removesuffix("\r\n") + "\n")


def read_csv(path: Path, root: Path) -> list[Row]:
    before = csv.field_size_limit(MAX_CELL)  # of the whole process
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            table = csv.DictReader(file, strict=True)
            _check_header(path, table.fieldnames)
            return [
                _row(record, number, root, f"{path}, line {table.line_num}")
                for number, record in enumerate(table)
            ]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: no manifest or folder here") from error
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV table: {error}") from error
    finally:
        csv.field_size_limit(before)


def _check_header(path: Path, names: Sequence[str] | None) -> None:
    if path.suffix.lower() in SUFFIXES or not all(map(str.isprintable, names or ())):
        raise UsageError(f"{path}: not a table: a CSV file with a column `path`, or a folder")
    if not names or "path" not in names:
        found = ", ".join(names or ["none"])
        found = found if len(found) <= MAX_SHOWN else found[:MAX_SHOWN] + "..."
        raise UsageError(f"{path}: no column `path` in the first line (columns: {found})")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"{path}: column {doubled[0]!r} is there twice")


def _row(record: Mapping[str | None, str | None], number: int, root: Path, where: str) -> Row:
    if None in record or None in record.values():
        raise UsageError(f"{where}: more or fewer cells than the header has columns")
    cell = {str(name): str(value) for name, value in record.items()}
    start, end = (_seconds(cell.get(name, "").strip(), name, where) for name in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise UsageError(f"{where}: end {end:g} is not after start {start or 0:g}")
    return Row(
        path=inside(cell["path"], root, where),
        start=start,
        end=end,
        labels=_names(cell.get("labels", "")),
        known=_names(cell.get("known", "")),
        fold=cell.get("fold", "").strip(),
        group=cell.get("group", ""),
        split=_split_name(cell.get("split", "").strip(), where),
        number=number,
        extra={name: value for name, value in cell.items() if name not in COLUMNS},
    )


def _seconds(text: str, name: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{where}: {name}: expected seconds, got {text!r}")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(SEPARATOR) if name.strip()))


def _split_name(text: str, where: str) -> str:
    if text not in ("", "train", "valid", "test"):
        raise UsageError(f"{where}: split: expected train, valid or test, got {text!r}")
    return text


def _cells(row: Row, root: Path) -> list[str]:
    if row.member is not None:
        raise UsageError(f"{row.name}: a clip within another file has no place in a table")
    path = Path(os.path.abspath(row.path))
    if not path.is_relative_to(root):
        raise UsageError(f"{row.path} lies outside {root}")
    _check_names(row)
    times = ["" if value is None else repr(value) for value in (row.start, row.end)]
    names = [SEPARATOR.join(row.labels), SEPARATOR.join(row.known)]
    return [path.relative_to(root).as_posix(), *times, *names, row.fold, row.group, row.split]


def _check_names(row: Row) -> None:
    """Raise UsageError if a table of these names would be read as other labels or folds."""
    for label in (*row.labels, *row.known):
        if _names(label) != (label,):
            raise UsageError(
                f"{row.name}: a table cannot hold the label {label!r}: no {SEPARATOR!r} and no"
                " space around it, since it joins labels by that"
            )
    if row.fold != row.fold.strip():
        raise UsageError(f"{row.name}: a table cannot hold the fold {row.fold!r}: spaces around it")
