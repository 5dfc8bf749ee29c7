"""LibriSpeech: 1000 hours of read English (Panayotov et al., ICASSP 2015). It has no labels.

    LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac    part, speaker, chapter
    LibriSpeech/train-clean-100/103/1240/103-1240.trans.txt    103-1240-0000 CHAPTER ONE ...

A fold is a part: `data.train_folds=[train-clean-100]` trains on that alone; the two dev parts are
"valid". A group is a speaker, each of whom is in one part. The transcript is in `extra["text"]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from audiossl.data.datasets.dataset import Dataset
from audiossl.data.rows import Row
from audiossl.errors import UsageError

PARTS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}
# The sha256 of PART.tar.gz, as torchaudio and TensorFlow Datasets record them.
ARCHIVES = {
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}
SPLITS = {"train": "train", "dev": "valid", "test": "test"}

_NAME = re.compile(r"(\d+)-(\d+)-\d+")


def read(folder: Path) -> Iterator[Row]:
    """Rows of the parts that are there, by speaker, chapter and number."""
    for part in PARTS:
        for chapter in sorted((folder / part).glob("*/*")) if (folder / part).is_dir() else ():
            texts = _transcripts(chapter)
            for path in sorted(chapter.glob("*.flac")):
                yield _row(path, part, texts)


def _row(path: Path, part: str, texts: dict[str, str]) -> Row:
    speaker, chapter = path.parent.parent.name, path.parent.name
    name = _NAME.fullmatch(path.stem)
    if name is None or name.groups() != (speaker, chapter):
        raise UsageError(f"{path}: expected a name such as {speaker}-{chapter}-0000.flac")
    extra = {"chapter": chapter}
    if path.stem in texts:
        extra["text"] = texts[path.stem]
    return Row(path, fold=part, group=speaker, split=SPLITS[part.split("-")[0]], extra=extra)


def _transcripts(chapter: Path) -> dict[str, str]:
    path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line)


DATASETS = (
    Dataset(
        name="librispeech",
        title="LibriSpeech",
        licence="CC BY 4.0",
        citation=(
            "V. Panayotov, G. Chen, D. Povey, S. Khudanpur: Librispeech: an ASR corpus based on"
            " public domain audio books. ICASSP 2015, https://doi.org/10.1109/ICASSP.2015.7178964"
        ),
        page="https://www.openslr.org/12",
        folders=("LibriSpeech", "librispeech"),
        signs=tuple(PARTS),
        expected="folders such as train-clean-100/103/1240 with .flac files",
        read=read,
        counts=PARTS,
        by_parts=True,
        checksums={f"{part}.tar.gz": f"sha256:{digest}" for part, digest in ARCHIVES.items()},
    ),
)
