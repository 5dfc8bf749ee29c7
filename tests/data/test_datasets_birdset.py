"""BirdSet as the Hugging Face library keeps it: what `save_to_disk` writes, and its cache."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from minisets import RATE, put, sound

from audiossl.data import datasets, splitting
from audiossl.data.clip import clip_seconds, read_clip
from audiossl.data.datasets import birdset
from audiossl.data.rows import Row
from audiossl.errors import UsageError

CODES = ["gcrfin", "whcspa", "amepip"]


@pytest.fixture(scope="module")
def hf() -> Any:
    """The library, whose caches stay out of the home folder."""
    reason = "the library `datasets` is not installed: pip install 'audiossl-toolkit[birdset]'"
    library = pytest.importorskip("datasets", reason=reason)
    library.disable_progress_bars()
    return library


def tables(hf: Any, folder: Path) -> dict[str, Any]:
    """`train` and `test_5s` with BirdSet's features, sounds in files of their own."""
    import pyarrow

    code = hf.ClassLabel(names=CODES)
    text, number = hf.Value("string"), hf.Value("float64")
    features = hf.Features(
        {
            "audio": hf.Audio(sampling_rate=32_000, decode=False),
            "filepath": text,
            "start_time": number,
            "end_time": number,
            "low_freq": hf.Value("int64"),
            "high_freq": hf.Value("int64"),
            "ebird_code": code,
            "ebird_code_multilabel": hf.Sequence(code),
            "ebird_code_secondary": hf.Sequence(text),
            "call_type": text,
            "length": hf.Value("int64"),
            "license": text,
            "detected_events": hf.Sequence(hf.Sequence(number)),
            "event_cluster": hf.Sequence(hf.Value("int64")),
            "quality": text,
        }
    )
    files = [str(put(folder / f"XC{i}.wav", sound(1 + i))) for i in range(3)]
    long = str(put(folder / "HSN_001.wav", sound(10)))
    none = dict.fromkeys(features, None)
    train = [
        {**none, "filepath": files[0], "ebird_code": 0, "ebird_code_multilabel": [0, 2],
         "ebird_code_secondary": ["amepip", "norfli"], "length": 1, "quality": "A",
         "detected_events": [[0.1, 0.5]], "event_cluster": [0]},
        {**none, "filepath": files[1], "ebird_code": 1, "ebird_code_multilabel": [1]},
        {**none, "filepath": files[2], "ebird_code": 2, "ebird_code_multilabel": None},
    ]  # fmt: skip
    test = [
        {**none, "filepath": long, "start_time": start, "end_time": start + 5,
         "ebird_code_multilabel": found}
        for start, found in ((0.0, [1, 0]), (5.0, []))
    ]  # fmt: skip
    made = {}
    for split, rows in (("train", train), ("test_5s", test)):
        for row in rows:
            row["audio"] = {"bytes": None, "path": row["filepath"]}
        table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
        made[split] = hf.Dataset(hf.table.InMemoryTable(table))
    return made


def facts(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.labels, row.start, row.end, row.group, row.split, row.extra) for row in rows]


EXPECTED = [
    (("gcrfin", "amepip"), None, None, "XC0.wav", "train",
     {"ebird_code_secondary": "amepip;norfli", "length": "1", "quality": "A",
      "detected_events": "[[0.1, 0.5]]", "event_cluster": "[0]"}),
    (("whcspa",), None, None, "XC1.wav", "train", {}),
    (("amepip",), None, None, "XC2.wav", "train", {}),
    (("whcspa", "gcrfin"), 0.0, 5.0, "HSN_001.wav", "test", {}),
    ((), 5.0, 10.0, "HSN_001.wav", "test", {}),
]  # fmt: skip


def test_saved_to_disk_the_sounds_are_read_out_of_the_table(
    hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tables(hf, tmp_path / "sounds")
    hf.DatasetDict(made).save_to_disk(tmp_path / "BirdSet" / "HSN")
    for path in (tmp_path / "sounds").iterdir():
        path.rename(path.with_name(f"gone-{path.name}"))  # the tables must be enough
    monkeypatch.setenv("AUDIOSSL_DATA", str(tmp_path))
    rows = datasets.read("birdset_hsn")
    assert facts(rows) == EXPECTED
    assert [row.member.name for row in rows if row.member] == [
        "XC0.wav", "XC1.wav", "XC2.wav", "HSN_001.wav", "HSN_001.wav",
    ]  # fmt: skip
    assert [round(clip_seconds(row)) for row in rows] == [1, 2, 3, 5, 5]
    assert [len(read_clip(row, RATE)) for row in rows] == [RATE * n for n in (1, 2, 3, 5, 5)]
    train, valid = splitting.split(rows, valid_split="test")
    assert (len(train), len(valid)) == (3, 2)


def test_the_cache_of_a_download_names_files(hf: Any, tmp_path: Path) -> None:
    made = tables(hf, tmp_path / "sounds")
    place = tmp_path / "DBD-research-group___bird_set" / "HSN" / "0.0.4" / "0af1"
    place.mkdir(parents=True)
    for split, table in made.items():
        with hf.arrow_writer.ArrowWriter(
            path=str(place / f"bird_set-{split}.arrow"), features=table.features
        ) as writer:
            writer.write_table(table.data.table)
            writer.finalize()
    rows = datasets.read("birdset_hsn", tmp_path)
    assert facts(rows) == EXPECTED
    assert [row.path for row in rows[:2]] == [tmp_path / "sounds" / f"XC{i}.wav" for i in range(2)]
    assert rows[0].member is None
    (tmp_path / "sounds" / "XC1.wav").unlink()
    with pytest.raises(UsageError, match=r"1 of 5 files are missing: .*XC1\.wav"):
        datasets.read("birdset_hsn", tmp_path)
    other = place.with_name("77aa")
    other.mkdir()
    os.link(place / "bird_set-train.arrow", other / "bird_set-train.arrow")
    with pytest.raises(UsageError, match=r"train is there twice: .* give one as data\.root"):
        datasets.read("birdset_hsn", tmp_path)


def test_another_table_and_no_table(hf: Any, tmp_path: Path) -> None:
    hf.Dataset.from_dict({"x": [1]}).save_to_disk(tmp_path / "HSN" / "train")
    with pytest.raises(UsageError, match="no column 'filepath': not BirdSet"):
        datasets.read("birdset_hsn", tmp_path / "HSN")
    with pytest.raises(UsageError, match=r"no BirdSet HSN .* there: expected train/"):
        datasets.read("birdset_hsn", tmp_path / "nowhere")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "train" / "data-00000-of-00001.arrow", b"x")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"birdset_per: needs the datasets library: pip install"):
        datasets.read("birdset_per", tmp_path)


def test_numbers_that_are_no_times_and_lists() -> None:
    assert birdset._seconds(float("nan")) is None
    assert birdset._seconds(None) is None
    assert json.loads(birdset._shown([[0.5, 1.0]])) == [[0.5, 1.0]]
    assert birdset._shown([]) == ""
