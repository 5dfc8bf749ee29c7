"""Rows from a folder of sounds and label tracks of them.

Raven selection tables, Audacity labels, Praat TextGrids, CSV and TSV: each annotation is one row.
A track belongs to the sound that its own file column names, else to the sound whose name without
suffix its own name begins with: `dawn.Table.1.selections.txt` to `dawn.flac`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from audiossl.data import folder as folders
from audiossl.data.manifest import SEPARATOR
from audiossl.data.rows import SHOWN, Row
from audiossl.errors import InputError, UsageError
from audiossl.output import annotations
from audiossl.output.annotations import Annotation

SUFFIXES = {".txt", ".tsv", ".csv", ".textgrid"}


def read(
    sounds: Path, tracks: Sequence[Path], without: Path | None = None
) -> tuple[list[Row], list[str]]:
    """(rows by sound and start, what was left out: one sentence a kind).

    sounds: folder of audio files.
    tracks: files, or folders, which are searched recursively.
    without: a file to leave out, such as the manifest that is being written.

    Raises UsageError when there is no sound, no track, or no annotation of a sound.
    """
    if not sounds.is_dir():
        raise UsageError(f"{sounds}: annotations need a folder of audio files")
    known = folders.read(sounds)
    found: dict[str, list[Row]] = {row.name: [] for row in known}
    lost: list[str] = []  # annotations of a sound that is not there
    dropped: list[str] = []  # annotations that are no row
    broken: list[str] = []
    for path in _files(tracks, without):
        try:
            items = annotations.read(path)
        except InputError as error:
            broken.append(f"{path}: {error.message}")
            continue
        for item in items:
            sound = _sound(known, path, item)
            if sound is None:
                lost.append(f"{path}: {item.file or path.stem}")
            elif not _fits(item):
                dropped.append(f"{path}: {item.label.strip() or 'no label'} at {item.start:g} s")
            else:
                labels = (item.label.strip(),)
                row = replace(sound, start=item.start, end=item.end, labels=labels)
                found[sound.name].append(row)
    rows = [row for own in found.values() for row in sorted(own, key=_span)]
    said = [
        *_said("label files cannot be read", broken),
        *_said("annotations without a sound", lost),
        *_said("annotations that a manifest cannot hold", dropped),
        *_said("sounds without an annotation", [name for name, own in found.items() if not own]),
    ]
    if not rows:
        raise UsageError(f"{sounds}: no annotation of its sounds: {'; '.join(said)}")
    return [replace(row, number=number) for number, row in enumerate(rows)], said


def _files(tracks: Sequence[Path], without: Path | None) -> list[Path]:
    files = [path for track in tracks for path in (_below(track) if track.is_dir() else [track])]
    other = None if without is None else os.path.realpath(without)
    files = [path for path in files if os.path.realpath(path) != other]
    if not files:
        raise UsageError(f"{tracks[0]}: no label file (.txt, .tsv, .csv, .TextGrid)")
    return files


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            yield path


def _sound(sounds: Sequence[Row], track: Path, item: Annotation) -> Row | None:
    """The sound of an annotation; None: none, or several of that name."""
    if item.file:
        parts = Path(item.file.replace("\\", "/")).parts
        named = [row for row in sounds if row.path.name == parts[-1]]
        if len(named) > 1:  # of one name in several folders: the one that shares most of these
            shared = [_shared(row.path.parts, parts) for row in named]
            named = [row for row, n in zip(named, shared, strict=True) if n == max(shared)]
        return named[0] if len(named) == 1 else None
    named = [row for row in sounds if f"{track.name}.".startswith(f"{row.path.stem}.")]
    longest = max((len(row.path.stem) for row in named), default=0)
    named = [row for row in named if len(row.path.stem) == longest]
    if len(named) > 1:
        named = [row for row in named if row.path.parent == track.parent]
    return named[0] if len(named) == 1 else None


def _fits(item: Annotation) -> bool:
    """Whether a manifest can hold it: it needs a length above 0 and a label without ";"."""
    label = item.label.strip()
    return 0 <= item.start < item.end and bool(label) and SEPARATOR not in label


def _shared(path: Sequence[str], other: Sequence[str]) -> int:
    """Number of parts, from the end, that two paths have in common."""
    pairs = zip(reversed(path), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _span(row: Row) -> tuple[float, float]:
    return row.start or 0.0, row.end or 0.0


def _said(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = ", ..." if len(names) > SHOWN else ""
    return [f"{what}: {len(names):,}: {', '.join(dict.fromkeys(names[:SHOWN]))}{more}"]
