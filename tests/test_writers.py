"""Records to text: every format says what the records say."""

from __future__ import annotations

import csv
import io
import json

import pytest

import audiossl.annotations as label_tracks
from audiossl.records import ErrorRecord, Label, TagRecord
from audiossl.writers import FORMATS, TAG_COLUMNS, Record, merged, record_annotations

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


@pytest.mark.parametrize(("format_", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_separated_values_read_back(format_: str, delimiter: str) -> None:
    rows = list(csv.DictReader(io.StringIO(written(format_)), delimiter=delimiter))
    assert tuple(rows[0]) == TAG_COLUMNS
    assert [row["label"].split(",")[0] for row in rows] == ["Dog", "Rain", "Dog", "", "", "Dog"]
    assert rows[0]["score"] == "0.9"
    assert rows[4]["error"] == "truncated: header says 10, 5 decoded"
    assert [row["file"] for row in rows][::5] == ["a b.wav", "c.wav"]


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


def test_no_writer_gives_an_error_record_as_a_result() -> None:
    for format_ in ("audacity", "raven", "textgrid"):
        writer = FORMATS[format_]()
        writer.begin()
        writer.record(RECORDS[1][0])
        assert writer.end_file() == ""
