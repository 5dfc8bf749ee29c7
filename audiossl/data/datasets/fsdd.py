"""FSDD, Free Spoken Digit Dataset: ten digits by six speakers, 50 times each, 8 kHz.

    free-spoken-digit-dataset/recordings/7_jackson_32.wav    digit, speaker, index

The official test set are the recordings of index 0 to 4, by the same speakers as the rest. A fold
is a speaker, so `data.valid_folds=[theo]` evaluates on a voice that is not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from audiossl.data.datasets.dataset import Dataset
from audiossl.data.rows import Row
from audiossl.errors import UsageError

TEST = 5  # recordings of a digit and speaker: those of the lowest index

_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav")


def read(folder: Path) -> Iterator[Row]:
    """Rows by name; a wav file of another name is an error."""
    for path in sorted((folder / "recordings").glob("*.wav")):
        clip = _NAME.fullmatch(path.name)
        if clip is None:
            raise UsageError(f"{path}: expected a name such as 7_jackson_32.wav")
        yield Row(
            path,
            labels=(clip["digit"],),
            fold=clip["speaker"],
            group=clip["speaker"],
            split="test" if int(clip["index"]) < TEST else "train",
        )


DATASETS = (
    Dataset(
        name="fsdd",
        title="Free Spoken Digit Dataset",
        licence="CC BY-SA 4.0",
        citation=(
            "Z. Jackson et al.: Free Spoken Digit Dataset (FSDD) v1.0.10,"
            " https://zenodo.org/badge/latestdoi/61622039"
        ),
        page="https://github.com/Jakobovski/free-spoken-digit-dataset",
        folders=("free-spoken-digit-dataset", "free-spoken-digit-dataset-master", "FSDD", "fsdd"),
        signs=("recordings/[0-9]_*_[0-9]*.wav",),
        expected="recordings/0_george_0.wav and so on",
        read=read,
        counts={"train": 2_700, "test": 300},
        # Of the repository's tag v1.0.10.
        checksums={
            "recordings/": "sha256:b970ad27af2ee4e5e7a0d22d362c9c291853ec714a0193b103870a5637de65fe"
        },
        note="the test set has the speakers of the rest: data.valid_split=test data.crossing=keep",
    ),
)
