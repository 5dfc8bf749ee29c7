"""UrbanSound8K: city sounds of up to 4 s, in 10 folds (Salamon, Jacoby, Bello, 2014).

    UrbanSound8K/metadata/UrbanSound8K.csv
                        slice_file_name,fsID,start,end,salience,fold,classID,class
    UrbanSound8K/audio/fold1/101415-3-0-2.wav

Or a copy with urbansound8k.csv (filename,fold,target,category,fsID, the file name with its folder)
and audio/. The columns start and end tell where in the recording of Freesound a slice was; they do
not apply to its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiossl.data.datasets.dataset import Dataset, table
from audiossl.data.rows import Row, inside

OFFICIAL = Path("metadata", "UrbanSound8K.csv")
COLUMNS = ("slice_file_name", "fsID", "salience", "fold", "class")
COPY = "urbansound8k.csv"
COPY_COLUMNS = ("filename", "fold", "category", "fsID")
FOLDS = (873, 888, 925, 990, 936, 823, 838, 806, 816, 837)  # clips, of folds 1 to 10


def read(folder: Path) -> Iterator[Row]:
    """Rows of the official layout, or of a copy with one table."""
    audio = folder / "audio"
    path = folder / OFFICIAL
    if path.is_file():
        for record in table(path, COLUMNS):
            name = f"fold{record['fold']}/{record['slice_file_name']}"
            extra = {"salience": record["salience"]}  # 1 foreground, 2 background
            yield _row(inside(name, audio, str(path)), record, record["class"], extra)
        return
    path = folder / COPY
    for record in table(path, COPY_COLUMNS):
        yield _row(inside(record["filename"], audio, str(path)), record, record["category"], {})


def _row(path: Path, record: dict[str, str], label: str, extra: dict[str, str]) -> Row:
    return Row(path, labels=(label,), fold=record["fold"], group=record["fsID"], extra=extra)


DATASETS = (
    Dataset(
        name="urbansound8k",
        title="UrbanSound8K",
        licence="CC BY-NC 3.0",
        citation=(
            "J. Salamon, C. Jacoby, J. P. Bello: A Dataset and Taxonomy for Urban Sound Research."
            " ACM Multimedia 2014, https://doi.org/10.1145/2647868.2655045"
        ),
        page="https://urbansounddataset.weebly.com/urbansound8k.html",
        folders=("UrbanSound8K", "urbansound8k"),
        signs=("metadata/UrbanSound8K.csv", COPY),
        expected="metadata/UrbanSound8K.csv and audio/fold1 to audio/fold10",
        read=read,
        counts={str(fold): count for fold, count in enumerate(FOLDS, 1)},
        # The archive's md5 is Zenodo's (record 1203745), those of the files soundata 0.1.3's.
        checksums={
            "UrbanSound8K.tar.gz": "md5:9aa69802bbf37fb986f71ec1483a196e",
            "metadata/UrbanSound8K.csv": "md5:5015c37ce7d54c0bb8cd40a0b5ee2074",
            "audio/": "sha256:0e88a91e31d183cbf9286515c9d1f5e22ed53500c803db1fa3b8e0583336b6b4",
        },
        note=(
            "5 sources are in two folds: 180937 (1, 9), 132016 and 176638 (1, 4), 106905 (1, 8),"
            " 77751 (2, 7); results are given over all ten folds"
        ),
    ),
)
