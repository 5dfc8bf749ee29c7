"""BirdSet: focal recordings of birds to train on, soundscapes to test on (Rauch et al., ICLR 2025).

A copy as the Hugging Face library `datasets` keeps it, for each of the sets HSN, NBP, ... XCL:

    BirdSet/HSN/train/data-00000-of-00001.arrow    what `save_to_disk` writes
    DBD-research-group___bird_set/HSN/0.0.4/.../bird_set-train.arrow    its cache of downloads
        audio, filepath, start_time, end_time, ebird_code, ebird_code_multilabel,
        ebird_code_secondary, length, detected_events, event_cluster, quality, ...

`train` holds whole recordings, `test_5s` soundscapes in windows of 5 s; the labels are the eBird
codes of `ebird_code_multilabel`. What else is known of a recording is in `Row.extra`, lists of
numbers as JSON. Sounds that lie in the Arrow file itself are read from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from audiossl.data.datasets.dataset import Dataset
from audiossl.data.manifest import SEPARATOR
from audiossl.data.rows import Member, Row
from audiossl.errors import UsageError

SPLITS = {"train": "train", "test_5s": "test"}
CACHED = "[0-9].[0-9].*/*/"  # the cache's folders of a version and of a build
COLUMNS = ("filepath", "start_time", "end_time", "ebird_code", "ebird_code_multilabel")
EXTRA = (
    "ebird_code_secondary", "length", "quality", "detected_events", "event_cluster", "call_type",
    "sex", "lat", "long", "local_time", "license", "recordist",
)  # fmt: skip

# Recordings of `train`, windows of `test_5s`, as the set's card says.
SETS = {
    "PER": ("Amazon Basin, Peru", 16_802, 15_120),
    "NES": ("Colombia and Costa Rica", 16_117, 24_480),
    "UHH": ("Hawaiian Islands", 3_626, 36_637),
    "HSN": ("High Sierra Nevada", 5_460, 12_000),
    "NBP": ("NIPS4BPlus", 24_327, 563),
    "POW": ("Powdermill Nature Reserve", 14_911, 4_560),
    "SSW": ("Sapsucker Woods", 28_403, 205_200),
    "SNE": ("Sierra Nevada", 19_390, 23_756),
    "XCM": ("Xeno-Canto, 409 species", 89_798, 0),
    "XCL": ("Xeno-Canto, all species", 528_434, 0),
}


def read(folder: Path, name: str) -> Iterator[Row]:
    """Rows of both splits. Raises UsageError without the library `datasets`."""
    try:
        from datasets import Dataset as Table  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"birdset_{name.lower()}: needs the datasets library:"
            " pip install 'audiossl-toolkit[birdset]'"
        ) from error
    for split in SPLITS:
        for path in _arrow_files(folder, split):
            yield from _rows(Table.from_file(str(path)), path, split)


def _arrow_files(folder: Path, split: str) -> list[Path]:
    files = sorted({path for pattern in _patterns(split) for path in folder.glob(pattern)})
    places = sorted({path.parent for path in files})
    if len(places) > 1:
        both = " and ".join(map(str, places[:2]))
        raise UsageError(f"{folder}: {split} is there twice: {both}: give one as data.root")
    return files


def _patterns(split: str) -> list[str]:
    """Where a split may lie: none of them walks through a disk."""
    names = (f"*-{split}.arrow", f"*-{split}-*-of-*.arrow")
    return [f"{split}/*.arrow", *(f"{place}{name}" for place in ("", CACHED) for name in names)]


def _rows(table: Any, path: Path, split: str) -> Iterator[Row]:
    lacking = [column for column in COLUMNS if column not in table.column_names]
    if lacking:
        raise UsageError(f"{path}: no column {lacking[0]!r}: not BirdSet, or changed")
    wanted = [column for column in (*COLUMNS, *EXTRA) if column in table.column_names]
    values = {column: table.data.column(column).to_pylist() for column in wanted}
    codes = _names(table.features["ebird_code_multilabel"])
    code = _names(table.features["ebird_code"])
    members = _members(path) if "audio" in table.column_names else [None] * len(table)
    for i, member in enumerate(members):
        given = {column: values[column][i] for column in wanted}
        labels = [codes[n] if codes else n for n in given["ebird_code_multilabel"] or ()]
        if not labels and given["ebird_code"] is not None:
            labels = [code[given["ebird_code"]] if code else given["ebird_code"]]
        file = Path(given["filepath"])
        yield Row(
            path if member else path.parent / file,
            start=_seconds(given["start_time"]),
            end=_seconds(given["end_time"]),
            labels=tuple(dict.fromkeys(labels)),
            group=file.name,
            split=SPLITS[split],
            extra={key: _shown(given[key]) for key in EXTRA if given.get(key) is not None},
            member=member,
        )


def _names(feature: Any) -> list[str]:
    """Names of a class label or of a list of them; of plain text, none."""
    return list(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _members(path: Path) -> list[Member | None]:
    """Where in an Arrow file each sound lies that the file holds itself; None: in its own file."""
    import pyarrow as pa  # pyright: ignore[reportMissingImports]

    found: list[Member | None] = []
    with pa.memory_map(str(path)) as file:
        size = file.size()
        begin = file.read_buffer(size).address
        file.seek(0)
        for chunk in pa.ipc.open_stream(file).read_all().column("audio").chunks:
            sounds, names = chunk.field("bytes"), chunk.field("path").to_pylist()
            there = sounds.is_valid().to_pylist()
            if not any(there):
                found += [None] * len(there)
                continue
            width = np.int64 if pa.types.is_large_binary(sounds.type) else np.int32
            _, places, content = sounds.buffers()
            at = np.frombuffer(places, width)[sounds.offset : sounds.offset + len(sounds) + 1]
            at = at.astype(np.int64) + content.address - begin
            if not 0 <= at[0] <= at[-1] <= size:
                raise UsageError(f"{path}: a compressed Arrow file: its sounds cannot be read")
            found += [
                Member(names[i] or f"{len(found) + i}", int(at[i]), int(at[i + 1] - at[i]))
                if there[i]
                else None
                for i in range(len(there))
            ]
    return found


def _seconds(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return SEPARATOR.join(value)
    return json.dumps(value) if isinstance(value, list) else str(value)


def _dataset(name: str, title: str, train: int, test: int) -> Dataset:
    return Dataset(
        name=f"birdset_{name.lower()}",
        title=f"BirdSet {name} ({title})",
        licence="CC BY-NC 4.0 (each recording has its own)",
        citation=(
            "L. Rauch et al.: BirdSet: A Large-Scale Dataset for Audio Classification in Avian"
            " Bioacoustics. 2024, https://arxiv.org/abs/2403.10380"
        ),
        page="https://huggingface.co/datasets/DBD-research-group/BirdSet",
        folders=(
            f"BirdSet/{name}",
            f"birdset/{name}",
            f"DBD-research-group___bird_set/{name}",
        ),
        signs=tuple(pattern for split in SPLITS for pattern in _patterns(split)),
        expected="train/*.arrow and test_5s/*.arrow, or the cache of the datasets library",
        read=partial(read, name=name),
        counts={"train": train, **({"test": test} if test else {})},
    )


DATASETS = tuple(_dataset(name, *facts) for name, facts in SETS.items())
