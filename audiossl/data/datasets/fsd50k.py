"""FSD50K: 51,197 clips of Freesound with labels of 200 AudioSet classes (Fonseca et al., 2022).

    FSD50K/FSD50K.ground_truth/dev.csv    fname,labels,mids,split    split: train or val
    FSD50K/FSD50K.ground_truth/eval.csv   fname,labels,mids
    FSD50K/FSD50K.ground_truth/vocabulary.csv    index,label,mid, without a header
    FSD50K/FSD50K.dev_audio/64760.wav     FSD50K/FSD50K.eval_audio/37199.wav

The labels are spelled as in the set and hold their parents in the ontology too. `val` becomes
"valid", the evaluation set "test".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiossl.data.datasets.dataset import Dataset, records, table
from audiossl.data.rows import Row, inside
from audiossl.errors import UsageError

TRUTH = "FSD50K.ground_truth"
SPLITS = {"train": "train", "val": "valid"}


def read(folder: Path) -> Iterator[Row]:
    """Rows of the development and, where its table is there, of the evaluation set."""
    words = folder / TRUTH / "vocabulary.csv"
    known = {record["label"] for record in records(words, ("index", "label", "mid"))}
    yield from _part(folder, "dev", known)
    if (folder / TRUTH / "eval.csv").is_file():
        yield from _part(folder, "eval", known)


def _part(folder: Path, part: str, known: set[str]) -> Iterator[Row]:
    path, audio = folder / TRUTH / f"{part}.csv", folder / f"FSD50K.{part}_audio"
    columns = ("fname", "labels", "mids", *(("split",) if part == "dev" else ()))
    for record in table(path, columns):
        labels = tuple(record["labels"].split(","))
        if unknown := set(labels) - known:
            message = f"{path}: clip {record['fname']}: label {sorted(unknown)[0]!r}"
            raise UsageError(f"{message} is not in vocabulary.csv")
        split = SPLITS.get(record["split"], "") if part == "dev" else "test"
        if not split:
            message = f"{path}: clip {record['fname']}: split {record['split']!r}"
            raise UsageError(f"{message}: expected train or val")
        yield Row(
            inside(f"{record['fname']}.wav", audio, str(path)),
            labels=labels,
            split=split,
            extra={"mids": record["mids"]},
        )


DATASETS = (
    Dataset(
        name="fsd50k",
        title="FSD50K",
        licence="CC BY 4.0 (each clip has its own: CC0, CC BY, CC BY-NC or CC Sampling+)",
        citation=(
            "E. Fonseca, X. Favory, J. Pons, F. Font, X. Serra: FSD50K: an Open Dataset of"
            " Human-Labeled Sound Events. IEEE/ACM TASLP 30, 2022, https://arxiv.org/abs/2010.00475"
        ),
        page="https://zenodo.org/records/4060432",
        folders=("FSD50K", "fsd50k"),
        signs=(f"{TRUTH}/dev.csv",),
        expected=f"{TRUTH}/dev.csv, eval.csv, vocabulary.csv, FSD50K.dev_audio, FSD50K.eval_audio",
        read=read,
        counts={"train": 36_796, "valid": 4_170, "test": 10_231},
        # The archives' md5 are Zenodo's (record 4060432), those of the files soundata 0.1.3's.
        checksums={
            "FSD50K.dev_audio.zip": "md5:c480d119b8f7a7e32fdb58f3ea4d6c5a",
            "FSD50K.dev_audio.z01": "md5:faa7cf4cc076fc34a44a479a5ed862a3",
            "FSD50K.dev_audio.z02": "md5:8f9b66153e68571164fb1315d00bc7bc",
            "FSD50K.dev_audio.z03": "md5:1196ef47d267a993d30fa98af54b7159",
            "FSD50K.dev_audio.z04": "md5:d088ac4e11ba53daf9f7574c11cccac9",
            "FSD50K.dev_audio.z05": "md5:81356521aa159accd3c35de22da28c7f",
            "FSD50K.eval_audio.zip": "md5:6fa47636c3a3ad5c7dfeba99f2637982",
            "FSD50K.eval_audio.z01": "md5:3090670eaeecc013ca1ff84fe4442aeb",
            "FSD50K.ground_truth.zip": "md5:ca27382c195e37d2269c4c866dd73485",
            f"{TRUTH}/dev.csv": "md5:e3abc04c55b4caedc75949b8af8df9ea",
            f"{TRUTH}/eval.csv": "md5:72d9c82f3ddd2c06c3cbd6e47e190558",
            f"{TRUTH}/vocabulary.csv": "md5:0caaf9955ca53e358e9ab8f1e6271ba2",
            "FSD50K.dev_audio/": (
                "sha256:e0f25891911b4c6bbe1eeddcb5c3b713525564cd8145c840590d4f02cf678f6b"
            ),
            "FSD50K.eval_audio/": (
                "sha256:25f8c2b64d1604d4d0ee66ad35b947829e452734511ffda4c493d1fcf93ea0b4"
            ),
        },
    ),
)
