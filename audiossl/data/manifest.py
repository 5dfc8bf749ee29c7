"""The one table format: a CSV file with a header, one row a clip.

A folder of audio files (folder.py), and shards (shards.py), give the same rows.

    path,start,end,labels,known,fold,group,split
    dogs/a.wav,,,Dog;Bark,,1,a,

path    relative to the manifest's folder (or to `root`), never above it; required; spaces count
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
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from audiossl.audio.names import SUFFIXES
from audiossl.errors import UsageError

COLUMNS = ("path", "start", "end", "labels", "known", "fold", "group", "split")
SEPARATOR = ";"
UNKNOWN = -1.0  # target of a class that nobody judged
MAX_CELL = 1 << 20  # characters
SHOWN = 5  # names in an error
MAX_SHOWN = 200  # characters of a first line


@dataclass(frozen=True)
class Member:
    """A file within a file (a tar, an Arrow table): `size` bytes from byte `offset` on."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Row:
    """One clip. `start`, `end` in seconds, None: the file's own. clip.open_clip opens it.

    `number` is its place in the table, from 0, whatever split it is in. With a `member` the clip is
    that part of the file `path`.
    """

    path: Path
    start: float | None = None
    end: float | None = None
    labels: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    fold: str = ""
    group: str = ""
    split: str = ""
    number: int = 0
    extra: dict[str, str] = field(default_factory=dict, hash=False)
    member: Member | None = None

    @property
    def name(self) -> str:
        """The file as it is shown: `clips/a.wav`, `shards/a-000000.tar/00000017.flac`."""
        return f"{self.path}/{self.member.name}" if self.member else str(self.path)


def read(path: str | os.PathLike[str], root: str | None = None) -> list[Row]:
    """Rows of a manifest file, of a folder of audio files or of shards; all files exist.

    Raises UsageError naming the line, or the missing files and their number.
    """
    from audiossl.data import folder, shards

    place = Path(path).expanduser()
    if shards.named(place):
        return shards.read(place)
    if place.is_dir():
        return folder.read(place)
    rows = _read_csv(place, Path(root).expanduser() if root else place.parent)
    missing = [row.path for row in rows if not row.path.is_file()]
    if missing:
        names = ", ".join(str(name) for name in missing[:SHOWN])
        more = ", ..." if len(missing) > SHOWN else ""
        raise UsageError(f"{path}: {len(missing)} of {len(rows)} files are missing: {names}{more}")
    if not rows:
        raise UsageError(f"{path}: no row")
    return rows


def write(path: str | os.PathLike[str], rows: Iterable[Row], root: Path | None = None) -> None:
    """Write rows as a manifest whose paths are relative to `root`, default its own folder."""
    from audiossl.atomic import atomic_write

    content = encode(rows, root or Path(path).parent)
    with atomic_write(Path(path)) as file:
        file.write(content)


def encode(rows: Iterable[Row], root: Path) -> bytes:
    """Rows as the content of a manifest whose paths are relative to `root`."""
    rows = list(rows)
    root = Path(os.path.abspath(root))
    extra = sorted({name for row in rows for name in row.extra})
    lines = _Lines()
    table = csv.writer(lines, lineterminator="\r\n")
    table.writerow([*COLUMNS, *extra])
    for row in rows:
        table.writerow(_cells(row, root) + [row.extra.get(name, "") for name in extra])
    return "".join(lines.parts).encode("utf-8", "surrogateescape")


def labels_of(rows: Iterable[Row]) -> list[str]:
    """All labels, sorted."""
    return sorted({label for row in rows for label in row.labels})


def target(row: Row, columns: Mapping[str, int]) -> np.ndarray:
    """(classes,) float32 of a row: 1 present, 0 absent, -1 unknown; other labels are left out.

    columns: the place of each class.
    """
    values = np.full(len(columns), UNKNOWN if row.known else 0.0, np.float32)
    values[[columns[name] for name in row.known if name in columns]] = 0
    values[[columns[name] for name in row.labels if name in columns]] = 1
    return values


def targets(rows: Sequence[Row], labels: Sequence[str]) -> np.ndarray:
    """(rows, classes) float32: `target` of each row."""
    columns = {label: i for i, label in enumerate(labels)}
    found = [target(row, columns) for row in rows]
    return np.array(found, np.float32).reshape(len(rows), len(columns))


def split(
    rows: Sequence[Row],
    valid_folds: Sequence[str] = (),
    valid_fraction: float = 0.0,
    *,
    train_folds: Sequence[str] = (),
    valid_split: str = "valid",
    crossing: str = "error",
) -> tuple[list[Row], list[Row]]:
    """(train, valid) rows: by folds, by a fraction of the groups, or by the `split` column.

    Evaluated are rows of the `valid_folds`, or of a fraction of the groups, or else of the
    `valid_split`; trained on are the others that have split "train" or none, of the `train_folds`
    if any are named. The fraction goes by a hash of the group's name, so a row added later moves no
    other row. `crossing`: what to do with groups on both sides, see `apart`.
    Raises UsageError when a fold does not exist or a group crosses.
    """
    pool = [row for row in rows if row.split != "test"]
    _check_folds(pool, [*valid_folds, *train_folds])
    if valid_folds:
        valid = [row for row in pool if row.fold in valid_folds]
    elif valid_fraction:
        valid = [row for row in pool if _share(_group(row)) < valid_fraction]
    else:
        valid = [row for row in rows if row.split == valid_split]
    evaluated = {id(row) for row in valid}
    train = [
        row
        for row in pool
        if row.split != "valid"
        and id(row) not in evaluated
        and (not train_folds or row.fold in train_folds)
    ]
    return apart(train, valid, crossing), valid


def apart(train: Sequence[Row], valid: Sequence[Row], crossing: str = "error") -> list[Row]:
    """The training rows, given what may be done with groups that are evaluated as well.

    error: nothing. drop: their training rows are left out. keep: they stay, as a published split
    may have it. Raises UsageError, whatever `crossing` says, when a file is on both sides.
    """
    train = list(train)
    if crossing == "drop":
        evaluated = {row.group for row in valid} - {""}
        train = [row for row in train if row.group not in evaluated]
    elif crossing == "error" and (problem := _crossing_groups(train, valid)):
        raise UsageError(
            f"{problem} (data.crossing: drop leaves them out of training, keep does not)"
        )
    if problem := _crossing_files(train, valid):
        raise UsageError(problem)
    return train


def check_disjoint(train: Sequence[Row], valid: Sequence[Row]) -> None:
    """Raise UsageError when a group or a file is on both sides."""
    if problem := _crossing_groups(train, valid) or _crossing_files(train, valid):
        raise UsageError(problem)


def balanced_weights(rows: Sequence[Row], labels: Sequence[str]) -> np.ndarray:
    """(rows,) float64, sum 1: the sum over a row's labels of 1 / (number of rows with that label).

    AST's way (its gen_weight_file.py), up to a constant. A row without label weighs as the mean.
    """
    known = set(labels)
    counts = Counter(label for row in rows for label in set(row.labels) & known)
    weights = np.array(
        [sum(1 / counts[label] for label in set(row.labels) & known) for row in rows]
    )
    labelled = weights > 0
    weights[~labelled] = weights[labelled].mean() if labelled.any() else 1.0
    return weights / weights.sum()


def fingerprint(rows: Iterable[Row]) -> str:
    """Hex sha256 over each row's file name, times, labels, group, and the size of its file.

    Files are not read, which would take hours: other sound in a file of the same name and size
    is not seen. Folders, folds and splits count only where they change which rows there are.
    """
    digest = hashlib.sha256()
    for row in rows:
        name = row.path.name if row.member is None else _group(replace(row, group=""))
        size = row.path.stat().st_size if row.member is None else row.member.size
        facts = [name, row.start, row.end, row.labels, row.known, row.group, size]
        digest.update(json.dumps(facts).encode("ascii"))
    return digest.hexdigest()


class _Lines:
    r"""What csv.writer writes to, which quotes a \r only where lines end by \r\n."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, line: str) -> None:
        self.parts.append(line.removesuffix("\r\n") + "\n")


def _read_csv(path: Path, root: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            csv.field_size_limit(MAX_CELL)
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


def inside(name: str, root: Path, where: str) -> Path:
    """`root / name`, which must not lead out of `root`; a link that the user laid there may."""
    if not name:
        raise UsageError(f"{where}: path is empty")
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"{where}: path {name!r} leads out of {root}")
    return root / name


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


def _group(row: Row) -> str:
    return row.group or (f"{row.path.name}/{row.member.name}" if row.member else row.path.name)


def _check_folds(rows: Sequence[Row], folds: Iterable[str]) -> None:
    known = {row.fold for row in rows}
    for fold in folds:
        if fold not in known:
            raise UsageError(f"no row in fold {fold!r} (folds: {', '.join(sorted(known))})")


def _crossing_groups(train: Sequence[Row], valid: Sequence[Row]) -> str:
    return _crossing("group", {row.group for row in train}, {row.group for row in valid})


def _crossing_files(train: Sequence[Row], valid: Sequence[Row]) -> str:
    return _crossing("file", {row.name for row in train}, {row.name for row in valid})


def _crossing(what: str, train: set[str], valid: set[str]) -> str:
    """What is wrong with names on both sides; empty: nothing."""
    both = sorted((train & valid) - {""})
    if not both:
        return ""
    are, more = (f"{what}s are", ", ...") if len(both) > 1 else (f"{what} is", "")
    return f"{len(both)} {are} in training and in evaluation: {both[0]!r}{more}"


def _share(name: str) -> float:
    """A number in [0, 1) that belongs to a name for ever."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


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
    """Raise UsageError where a table would be read as other labels, or another fold."""
    for label in (*row.labels, *row.known):
        if _names(label) != (label,):
            raise UsageError(
                f"{row.name}: a table cannot hold the label {label!r}: no {SEPARATOR!r} and no"
                " space around it, since it joins labels by that"
            )
    if row.fold != row.fold.strip():
        raise UsageError(f"{row.name}: a table cannot hold the fold {row.fold!r}: spaces around it")
