"""Rows of a path, which may be a manifest, a folder of audio files, or shards."""

from __future__ import annotations

import os
from pathlib import Path

from audiossl.data.manifest import read_csv
from audiossl.data.rows import SHOWN, Row
from audiossl.errors import UsageError


def read(path: str | os.PathLike[str], root: str | None = None) -> list[Row]:
    """Rows whose files all exist.

    path: a manifest, a folder of audio files, or shards.
    root: folder to which a manifest's paths are relative; None: its own.

    Raises UsageError naming the line, or the missing files and their number.
    """
    from audiossl.data import folder, shards

    place = Path(path).expanduser()
    if shards.named(place):
        return shards.read(place)
    if place.is_dir():
        return folder.read(place)
    rows = read_csv(place, Path(root).expanduser() if root else place.parent)
    there = {path: path.is_file() for path in {row.path for row in rows}}  # once, of many rows
    missing = [row.path for row in rows if not there[row.path]]
    if missing:
        names = ", ".join(str(name) for name in missing[:SHOWN])
        more = ", ..." if len(missing) > SHOWN else ""
        raise UsageError(f"{path}: {len(missing)} of {len(rows)} files are missing: {names}{more}")
    if not rows:
        raise UsageError(f"{path}: no row")
    return rows
