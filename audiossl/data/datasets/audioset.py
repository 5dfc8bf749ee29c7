"""AudioSet: 10 s segments of YouTube with 527 classes (Gemmeke et al., ICASSP 2017).

    AudioSet/balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
        # Segments csv created ...
        # num_ytids=22160, num_segs=22160, ...
        # YTID, start_seconds, end_seconds, positive_labels
        --PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
    AudioSet/class_labels_indices.csv    index,mid,display_name (if missing, this package's own)
    AudioSet/.../--PJHxphWEs.flac        one file a segment, in any folder below

The audio is not distributed: everyone has collected other files. They are found by name, whatever
folder they are in: YTID, YYTID, YTID_30 (seconds), YTID_30_40, YTID_30000_40000 (milliseconds), the
times also with decimals. A file is taken to be the segment, not the whole video.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from audiossl import labels
from audiossl.audio.names import SUFFIXES
from audiossl.data.datasets.dataset import Dataset, records, table
from audiossl.data.rows import Row
from audiossl.errors import UsageError

PARTS = {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"}
COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")

_SEGMENTS = re.compile(r"^#.*\bnum_segs=(\d+)", re.MULTILINE)
_YTID = re.compile(r"[A-Za-z0-9_-]{11}")


def read(folder: Path) -> Iterator[Row]:
    """Rows of every segments table that is there."""
    tables = {part: _table(folder, part) for part in PARTS}
    names = _class_names(folder)
    files = _files(folder)
    for part, path in tables.items():
        if path is not None:
            yield from _segments(path, part, names, files)


def _table(folder: Path, part: str) -> Path | None:
    for place in (folder, folder / "csv", folder / "metadata"):
        if (path := place / f"{part}_segments.csv").is_file():
            return path
    return None


def _class_names(folder: Path) -> dict[str, str]:
    """The display name of each class id."""
    for place in (folder, folder / "csv", folder / "metadata"):
        if (path := place / "class_labels_indices.csv").is_file():
            found = table(path, ("index", "mid", "display_name"))
            return {record["mid"]: record["display_name"] for record in found}
    return {entry.mid: entry.name for entry in labels.load("audioset") if entry.mid}


def _files(folder: Path) -> dict[str, Path]:
    """Every audio file below, by its name without suffix."""
    found: dict[str, Path] = {}
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                found.setdefault(stem, Path(root, name))
    return found


def _segments(
    path: Path, part: str, names: dict[str, str], files: dict[str, Path]
) -> Iterator[Row]:
    count = 0
    for record in records(path, COLUMNS, skip="#"):
        count += 1
        ytid, mids = record["YTID"], record["positive_labels"].split(",")
        if not _YTID.fullmatch(ytid):
            raise UsageError(f"{path}: segment {count}: {ytid!r} is no YouTube id")
        if unknown := [mid for mid in mids if mid not in names]:
            raise UsageError(f"{path}: segment {ytid}: unknown class {unknown[0]!r}")
        yield Row(
            _file(files, path, record),
            labels=tuple(names[mid] for mid in mids),
            fold=part,
            group=ytid,
            split=PARTS[part],
            extra={"start_seconds": record["start_seconds"]},
        )
    _check_count(path, count)


def _file(files: dict[str, Path], path: Path, record: dict[str, str]) -> Path:
    """The segment's file; where there is none, a name to call it by."""
    ytid = record["YTID"]
    try:
        start, end = (float(record[column]) for column in ("start_seconds", "end_seconds"))
    except ValueError:
        raise UsageError(f"{path}: segment {ytid}: expected seconds") from None
    for stem in _stems(ytid, start, end):
        if stem in files:
            return files[stem]
    return path.with_name(f"{ytid}_{start:g}_{end:g}")


def _stems(ytid: str, start: float, end: float) -> Iterator[str]:
    """Names that a segment's file may have, the usual ones first."""
    clock = (("g", 1), (".3f", 1), (".1f", 1), (".0f", 1000))  # the last in milliseconds
    spans = [(format(start * unit, form), format(end * unit, form)) for form, unit in clock]
    for name in (ytid, f"Y{ytid}"):
        yield name
        for first, last in spans:
            yield from (f"{name}_{first}", f"{name}_{first}_{last}")


def _check_count(path: Path, count: int) -> None:
    """The table's own second line says how many segments there are."""
    with path.open(encoding="utf-8", errors="replace") as file:
        said = _SEGMENTS.search(file.readline() + file.readline())
    if said and int(said[1]) != count:
        message = f"{count:,} segments, but its second line says {int(said[1]):,}"
        raise UsageError(f"{path}: {message}: the file is cut or changed")


DATASETS = (
    Dataset(
        name="audioset",
        title="AudioSet",
        licence="CC BY 4.0 (labels; the audio is its makers')",
        citation=(
            "J. F. Gemmeke et al.: Audio Set: An ontology and human-labeled dataset for audio"
            " events. ICASSP 2017, https://doi.org/10.1109/ICASSP.2017.7952261"
        ),
        page="https://research.google.com/audioset/download.html",
        folders=("AudioSet", "audioset", "audio_set"),
        signs=tuple(
            f"{place}{part}_segments.csv" for place in ("", "csv/", "metadata/") for part in PARTS
        ),
        expected="balanced_train_segments.csv and the like, and audio files named by YouTube id",
        read=read,
        # As TensorFlow Datasets records them.
        checksums={
            "balanced_train_segments.csv": (
                "sha256:3b83e5ff9ed72cfda37d4e36ce08250e107c1ea70f109f6ab6668ac200db5e94"
            ),
            "unbalanced_train_segments.csv": (
                "sha256:bb2dfd5e4f1ced39db9480633c510f813d7899f4b7472aa83a411b4a43a12698"
            ),
            "eval_segments.csv": (
                "sha256:f7055f53935f70e74e39494a5c8c4c78f1700fce275028bd36e31186f33d45db"
            ),
        },
        gaps=True,
        note="evaluate on it by data.valid_split=test; AS-20K: data.train_folds=[balanced_train]",
    ),
)
