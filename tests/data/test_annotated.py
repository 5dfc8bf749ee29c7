"""Sounds and the label tracks of other programs become rows that a probe can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from probe_clips import convolutional

from audiossl.commands.main import cli
from audiossl.data import annotated, reading
from audiossl.errors import UsageError
from audiossl.evaluate.features import Extractor, extract
from audiossl.evaluate.probe import read_data
from audiossl.output.annotations import Annotation, write_textgrid

RAVEN = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tAnnotation"


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    for name in ("dawn.wav", "dawn.late.wav", "dusk.flac", "a/rain.wav", "b/rain.wav"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 24000), 8000)
    return folder


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    """A track of each kind, for all sounds but dusk's."""
    folder = tmp_path / "tracks"
    folder.mkdir()
    lines = [RAVEN, "1\tSpectrogram 1\t1.5\t2.0\twren", "2\tSpectrogram 1\t0.5\t1.25\trobin"]
    (folder / "dawn.Table.1.selections.txt").write_text("\n".join(lines) + "\n")
    (folder / "dawn.late.txt").write_text("0.1\t0.6\twren\n")
    table = "file,start,end,label\na/rain.wav,0,1,rain\nC:\\x\\b\\rain.wav,1,2,hail\n"
    (folder / "weather.csv").write_text(table)
    return folder


def manifest(*args: str | Path) -> int:
    arguments = ["data", "manifest", *map(str, args)]
    return int(cli.main(arguments, prog_name="audiossl", standalone_mode=False) or 0)


def test_each_annotation_is_a_row_of_its_sound(
    sounds: Path, tracks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds / "manifest.csv"
    assert manifest(sounds, "--annotations", tracks, "-o", out) == 3
    rows = reading.read(out)
    found = [
        (row.path.relative_to(sounds).as_posix(), row.start, row.end, row.labels) for row in rows
    ]
    assert sorted(found) == [
        ("a/rain.wav", 0.0, 1.0, ("rain",)),
        ("b/rain.wav", 1.0, 2.0, ("hail",)),
        ("dawn.late.wav", 0.1, 0.6, ("wren",)),
        ("dawn.wav", 0.5, 1.25, ("robin",)),
        ("dawn.wav", 1.5, 2.0, ("wren",)),
    ]
    assert {row.group for row in rows if row.path.name == "dawn.wav"} == {"dawn.wav"}
    said = capsys.readouterr().err
    assert "5 rows" in said
    assert f"sounds without an annotation: 1: {sounds / 'dusk.flac'}" in said
    grid = write_textgrid([Annotation(0.2, 0.9, "owl"), Annotation(1.0, 1.5, "wren")], 3.0)
    (tracks / "dusk.TextGrid").write_text(grid)
    assert manifest(sounds, "--annotations", tracks, "-o", out) == 0
    _, read = read_data(str(out))
    assert [row.labels for row in read if row.path.name == "dusk.flac"] == [("owl",), ("wren",)]
    features = extract(Extractor(convolutional()), read, "", sounds.parent / "kept")
    assert features.errors == {}
    assert features.pooled is not None
    assert len(features.pooled) == 7


def test_what_is_left_out_is_counted(sounds: Path, tracks: Path) -> None:
    (tracks / "noon.txt").write_text("0.1\t0.6\twren\n")
    (tracks / "dusk.txt").write_text("0.1\t0.6\twren\n1.0\t1.0\tclick\n1.0\t2.0\t\n1.0\t2.0\ta;b\n")
    (tracks / "bad.txt").write_text("no label track\n")
    (tracks / "rain.txt").write_text("0.1\t0.6\tof which of two sounds?\n")
    rows, said = annotated.read(sounds, [tracks])
    assert len(rows) == 6
    assert [row.number for row in rows] == list(range(6))
    assert [": ".join(sentence.split(": ")[:2]) for sentence in said] == [
        "label files cannot be read: 1",
        "annotations without a sound: 2",
        "annotations that a manifest cannot hold: 3",
    ]


def test_without_any_row_it_says_why(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "noon.txt").write_text("0.1\t0.6\twren\n")
    with pytest.raises(UsageError, match="annotations without a sound: 1"):
        annotated.read(sounds, [tmp_path / "noon.txt"])
    with pytest.raises(UsageError, match="no label file"):
        annotated.read(sounds, [sounds])
    with pytest.raises(UsageError, match="a folder of audio files"):
        annotated.read(sounds / "dawn.wav", [tmp_path / "noon.txt"])
