"""Rows of a manifest, one clip each: their labels, targets, weights and fingerprint."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from audiossl.errors import UsageError

COLUMNS = ("path", "start", "end", "labels", "known", "fold", "group", "split")
UNKNOWN = -1.0  # target of a class that nobody judged
SHOWN = 5  # names in an error


@dataclass(frozen=True)
class Member:
    """A file within a file (a tar, an Arrow table).

    name: its name in there.
    offset: its first byte.
    size: bytes.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Row:
    """One clip; `data.clip.open_clip` opens it.

    path: its file.
    start, end: seconds; None: where the file begins or ends.
    labels: what can be heard.
    known: the labels that were judged; empty: all of them were.
    fold: its part of a cross-validation; empty: none.
    group: clips of one group (a recording, a speaker) are never on both sides of a split.
    split: "train", "valid", "test" or empty.
    number: its place in the manifest, from 0.
    extra: further columns.
    member: the part of `path` that is the clip; None: all of it.
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


def labels_of(rows: Iterable[Row]) -> list[str]:
    """All labels, sorted."""
    return sorted({label for row in rows for label in row.labels})


def target(row: Row, columns: Mapping[str, int]) -> np.ndarray:
    """The target of a row, (classes,) float32: 1 present, 0 absent, -1 unknown.

    row: its clip; labels that are not in `columns` are ignored.
    columns: the position of each class.
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


def balanced_weights(rows: Sequence[Row], labels: Sequence[str]) -> np.ndarray:
    """How often each row is drawn so that rare labels come as often as common ones.

    A row's weight is the sum, over its labels, of 1 / (number of rows with that label), as in AST's
    gen_weight_file.py up to a constant. A row without a label gets the mean weight.

    Returns (rows,) float64 with sum 1.
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

    Files are not read, which would take hours: if a file's sound changes but not its name and size,
    the fingerprint stays the same. Folders, folds and splits count only as far as they change which
    rows there are.
    """
    digest = hashlib.sha256()
    sizes = functools.cache(lambda path: path.stat().st_size)  # once, of many rows
    for row in rows:
        name = row.path.name if row.member is None else group_of(replace(row, group=""))
        size = sizes(row.path) if row.member is None else row.member.size
        facts = [name, row.start, row.end, row.labels, row.known, row.group, size]
        digest.update(json.dumps(facts).encode("ascii"))
    return digest.hexdigest()


def inside(name: str, root: Path, where: str) -> Path:
    """`root / name`, which must not lead out of `root`; a link that the user put there may.

    name: as the manifest has it.
    root: the manifest's folder.
    where: file and line, for the error.

    Raises UsageError.
    """
    if not name:
        raise UsageError(f"{where}: path is empty")
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"{where}: path {name!r} leads out of {root}")
    return root / name


def group_of(row: Row) -> str:
    return row.group or (f"{row.path.name}/{row.member.name}" if row.member else row.path.name)
