"""Records to text: every format says what the records say."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

import audiossl.output.annotations as label_tracks
from audiossl.audio import writing
from audiossl.output.annotations import Annotation
from audiossl.output.records import ErrorRecord, Label, TagRecord, full_name
from audiossl.output.writers import (
    EMBED_TEXTS,
    FORMATS,
    Record,
    encoded,
    merged,
    record_annotations,
)

DOG, RAIN = Label("Dog", 0.9), Label('Rain, "heavy"\tfall', 0.51239)
RECORDS: list[list[Record]] = [
    [
        TagRecord("a b.wav", 0.0, 5.0, (DOG, RAIN), "m").to_dict(),
        TagRecord("a b.wav", 5.0, 10.0, (Label("Dog", 0.95),), "m").to_dict(),
        TagRecord("a b.wav", 10.0, 12.5, (), "m", best=Label("Cat", 0.1)).to_dict(),
    ],
    [ErrorRecord("caf\udce9.wav", "truncated", "header says 10, 5 decoded").to_dict()],
    [TagRecord("c.wav", 0.0, 1.0, (DOG,), "m").to_dict()],
]


def written(format_: str) -> str:
    writer = FORMATS[format_]()
    parts = [writer.begin()]
    for records in RECORDS:
        parts += [writer.record(record) for record in records]
        parts.append(writer.end_file())
    return "".join([*parts, writer.end()])


def test_json_lines_and_json_hold_the_records() -> None:
    flat = [record for records in RECORDS for record in records]
    assert [json.loads(line) for line in written("jsonl").splitlines()] == flat
    assert json.loads(written("json")) == flat
    assert json.loads(FORMATS["json"]().end()) == []


def test_names_that_are_not_utf8_keep_their_bytes() -> None:
    record = RECORDS[1][0]
    assert record["file"] == "caf\ufffd.wav"
    assert record["file_b64"] == "Y2Fm6S53YXY="
    assert os.fsencode(full_name(record)) == b"caf\xe9.wav"
    assert full_name(RECORDS[0][0]) == "a b.wav"


@pytest.mark.parametrize("format_", ["csv", "tsv", "raven", "embeddings"])
def test_tables_are_utf8_and_tell_names_apart(format_: str) -> None:
    writer = EMBED_TEXTS["csv"](0) if format_ == "embeddings" else FORMATS[format_]()
    writer.begin()
    for name in ("caf\udce9.wav", "caf\udce8.wav"):
        record = TagRecord(name, 0.0, 1.0, (DOG,), "m").to_dict()
        text = writer.record({**record, "embedding": np.zeros(0)}) + writer.end_file()
        assert f"caf\\x{ord(name[3]) - 0xDC00:x}.wav" in text.encode().decode()


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_a_message_with_such_a_name_is_utf8_as_well(format_: str) -> None:
    record = ErrorRecord("a.wav", "clash", "caf\udce9.wav holds it").to_dict()
    text = encoded(FORMATS[format_]().record(record)).decode("utf-8")
    if format_ == "jsonl":
        assert json.loads(text) == record, "a program has the bytes back"
    else:
        assert "clash: caf\\xe9.wav holds it" in text


@pytest.mark.parametrize(("format_", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_separated_values_read_back(format_: str, delimiter: str) -> None:
    rows = list(csv.DictReader(io.StringIO(written(format_)), delimiter=delimiter))
    assert tuple(rows[0]) == TagRecord.COLUMNS
    assert [row["label"].split(",")[0] for row in rows] == ["Dog", "Rain", "Dog", "", "", "Dog"]
    assert rows[0]["score"] == "0.9"
    assert rows[4]["error"] == "truncated: header says 10, 5 decoded"
    assert [row["file"] for row in rows][::5] == ["a b.wav", "c.wav"]


def test_records_become_annotations() -> None:
    assert record_annotations(RECORDS[0][0]) == [
        Annotation(0.0, 5.0, "Dog", 0.9, "a b.wav"),
        Annotation(0.0, 5.0, 'Rain, "heavy"\tfall', 0.5124, "a b.wav"),
    ]


def test_touching_windows_of_one_label_become_one_annotation() -> None:
    tracks = [item for record in RECORDS[0] for item in record_annotations(record)]
    spans = [(item.label, item.start, item.end, item.score) for item in merged(tracks)]
    assert ("Dog", 0.0, 10.0, 0.95) in spans
    assert len(spans) == 2


def test_a_gap_keeps_annotations_apart() -> None:
    def record(start: float) -> Record:
        return TagRecord("a", start, start + 1, (DOG,), "m").to_dict()

    tracks = [item for start in (0.0, 2.0, 0.5) for item in record_annotations(record(start))]
    assert [(item.start, item.end) for item in merged(tracks)] == [(0.0, 1.5), (2.0, 3.0)]


def test_label_tracks_read_back() -> None:
    writer = FORMATS["audacity"]()
    for record in RECORDS[0]:
        assert writer.record(record) == ""
    read = label_tracks.read_audacity(writer.end_file())
    assert (read[0].start, read[0].end, read[0].label) == (0.0, 10.0, "Dog")
    assert writer.end_file() == "", "the next input starts empty"


def test_a_file_without_labels_still_has_its_document() -> None:
    writer = FORMATS["textgrid"]()
    writer.record(RECORDS[0][2])
    assert "12.5" in writer.end_file()


def test_raven_times_run_on_over_the_files() -> None:
    rows = list(csv.DictReader(io.StringIO(written("raven")), delimiter="\t"))
    last = rows[-1]
    assert last["Begin File"] == "c.wav"
    assert float(last["Begin Time (s)"]) == 12.5
    assert float(last["File Offset (s)"]) == 0.0
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]
    assert {row["High Freq (Hz)"] for row in rows} == {"8000.000"}, "of files that are not there"


def heard(file: Path, rate: int, seconds: float, ends: float) -> list[Record]:
    """One window of a file that goes on behind it, as with a hop longer than the window."""
    writing.write(file, np.zeros(round(seconds * rate)), rate)
    return [TagRecord(str(file), 0.0, ends, (DOG,), "m").to_dict()]


def test_files_that_go_on_behind_their_last_window(tmp_path: Path) -> None:
    first, second = tmp_path / "caf\udce9.wav", tmp_path / "b.flac"
    inputs = [heard(first, 8000, 6.0, 4.5), heard(second, 44100, 1.0, 0.5)]
    raven = FORMATS["raven"]()
    text = raven.begin()
    for records in inputs:
        text += "".join(map(raven.record, records)) + raven.end_file()
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    assert [float(row["Begin Time (s)"]) for row in rows] == [0.0, 6.0]
    assert [float(row["End Time (s)"]) for row in rows] == [4.5, 6.5]
    assert [float(row["High Freq (Hz)"]) for row in rows] == [4000.0, 22050.0]
    grid = FORMATS["textgrid"]()
    grid.record(inputs[0][0])
    assert "\nxmax = 6 \n" in grid.end_file()


@pytest.mark.parametrize("what", ["damaged", "stdin", "no audio", "gone"])
def test_the_windows_tell_the_length_where_the_file_cannot(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    records = heard(path, 8000, 6.0, 4.5)
    if what == "damaged":
        records.append(ErrorRecord(str(path), "truncated", "header says 48000").to_dict())
    elif what == "stdin":
        records = [{**records[0], "file": "-"}]
    elif what == "no audio":
        path.write_bytes(bytes(10))
    else:
        path.unlink()
    grid = FORMATS["textgrid"]()
    for record in records:
        grid.record(record)
    assert "\nxmax = 4.5 \n" in grid.end_file()


def test_no_writer_gives_an_error_record_as_a_result() -> None:
    for format_ in ("audacity", "raven", "textgrid"):
        writer = FORMATS[format_]()
        writer.begin()
        writer.record(RECORDS[1][0])
        assert writer.end_file() == ""
