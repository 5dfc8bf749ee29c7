"""Compare a copy of a data set with the published one: counts, groups and, on demand, checksums."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audiossl.audio.names import SUFFIXES
from audiossl.data.datasets.dataset import Dataset
from audiossl.data.rows import SHOWN, Row, labels_of
from audiossl.errors import InputError

SAME, DIFFERS = "as published", "differs"


def report(dataset: Dataset, folder: Path, checksums: bool = False) -> dict[str, Any]:
    """A record, in plain values, of what is in `folder`.

    dataset: the published set.
    folder: the copy.
    checksums: whether to compare checksums, which may read every file.

    Its `complete` and `intact` are the outcome; None: not known.
    """
    rows, missing = dataset.rows(folder)
    parts = dataset.parts(rows)
    crossed = crossing(rows)
    record = {
        "name": dataset.name,
        "title": dataset.title,
        "folder": str(folder),
        "clips": len(rows),
        "labels": len(labels_of(rows)),
        "groups": len({row.group for row in rows} - {""}),
        "parts": {
            part: {"clips": here, "of": whole or None} for part, (here, whole) in parts.items()
        },
        "missing": len(missing),
        "missing_files": missing[:SHOWN],
        "crossing": len(crossed),
        "crossing_groups": crossed[:SHOWN],
        "complete": _complete(dataset, parts, len(missing)),
        "intact": None,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "page": dataset.page,
        "note": dataset.note,
    }
    if checksums:
        files = dict(verify(dataset, folder))
        record |= {"files": files, "intact": _intact(files)}
    return record


def crossing(rows: Iterable[Row]) -> list[str]:
    """Groups that are in several folds, or in training and elsewhere."""
    parts: dict[str, set[tuple[str, bool]]] = defaultdict(set)
    for row in rows:
        if row.group:
            parts[row.group].add((row.fold, row.split in ("", "train")))
    return sorted(group for group, places in parts.items() if len(places) > 1)


def verify(dataset: Dataset, folder: Path) -> Iterator[tuple[str, str]]:
    """(name, SAME or DIFFERS) of each file that is there, or (name, sha256) for tables without a
    known checksum."""
    for name, expected in dataset.checksums.items():
        kind = expected.partition(":")[0]
        places = (folder / name, folder.parent / name)
        if found := next((place for place in places if place.exists()), None):
            digest = listing(folder, name) if found.is_dir() else _digest(found, kind)
            yield name, SAME if f"{kind}:{digest}" == expected else DIFFERS
    for sign in dataset.signs:
        if sign not in dataset.checksums and (folder / sign).is_file():
            yield sign, f"sha256:{_digest(folder / sign, 'sha256')}"


def listing(folder: Path, name: str) -> str:
    """Hex sha256 over the md5 and name of each audio file below folder/name, sorted by name.

    As `md5sum NAME/* | LC_ALL=C sort -k 2 | sha256sum` in `folder` gives it.
    """
    files = (path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
    lines = {path.relative_to(folder).as_posix(): path for path in files if path.name[0] != "."}
    digest = hashlib.sha256()
    for line, path in sorted(lines.items()):
        digest.update(f"{_digest(path, 'md5')}  {line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _complete(dataset: Dataset, parts: dict[str, tuple[int, int]], missing: int) -> bool | None:
    if missing:
        return False
    known = [(here, whole) for here, whole in parts.values() if whole]
    return all(here == whole for here, whole in known) if known else None


def _intact(files: Mapping[str, str]) -> bool | None:
    compared = [found == SAME for found in files.values() if found in (SAME, DIFFERS)]
    return all(compared) if compared else None


def _digest(path: Path, kind: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, kind).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
