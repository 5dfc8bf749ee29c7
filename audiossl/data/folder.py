"""A folder of audio files as rows: the name of a subfolder is the label of the files in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from audiossl.audio.names import SUFFIXES
from audiossl.data.rows import Row
from audiossl.errors import UsageError


def read(folder: Path) -> list[Row]:
    """A row for every audio file below `folder`, sorted; its first subfolder is its label.

    Audio files are known by their suffix. Links to folders elsewhere are followed; hidden files and
    folders are left out. Raises UsageError if there is no audio file.
    """
    rows = []
    for root, names in _walk(folder):
        for name in names:
            path = Path(root, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            parts = path.relative_to(folder).parts
            labels = (parts[0],) if len(parts) > 1 else ()
            group = path.relative_to(folder).as_posix()
            rows.append(Row(path, labels=labels, group=group, number=len(rows)))
    if not rows:
        raise UsageError(f"{folder}: no audio file in this folder")
    return rows


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, its files) in order, each folder once, so that links cannot lead in a circle."""
    own, seen = os.path.realpath(top), set[str]()

    def is_new(path: str) -> bool:
        real = os.path.realpath(path)
        if os.path.islink(path) and os.path.commonpath([own, real]) in (own, real):
            return False  # its target is searched anyway, under its own name
        known = real in seen
        seen.add(real)
        return not known

    for root, folders, names in os.walk(top, followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if is_new(os.path.join(root, name))]
        yield root, sorted(names)
