"""Each adapter on a miniature with the true layout: rows, splits, groups; and what is wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import minisets
import pytest
from minisets import put, segments

from audiossl.data import datasets, splitting
from audiossl.data.datasets import speech_commands
from audiossl.data.rows import Row, labels_of
from audiossl.errors import UsageError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that AUDIOSSL_DATA names."""
    monkeypatch.setenv("AUDIOSSL_DATA", str(tmp_path))
    return tmp_path


def short(rows: list[Row], folder: Path) -> list[tuple[str, ...]]:
    names = [row.path.relative_to(folder).as_posix() for row in rows]
    return [
        (name, ";".join(row.labels), row.fold, row.group, row.split)
        for name, row in zip(names, rows, strict=True)
    ]


def test_esc50(data: Path) -> None:
    folder = minisets.esc50(data)
    rows = datasets.read("esc50")
    assert len(rows) == 10
    assert short(rows, folder)[:2] == [
        ("audio/1-100-A-0.wav", "dog", "1", "100", ""),
        ("audio/1-106-A-6.wav", "hen", "1", "106", ""),
    ]
    assert rows[0].extra == {"take": "A"}
    assert [row.number for row in rows] == list(range(10))


def test_esc10_in_esc50_alone_and_as_it_was_first(data: Path) -> None:
    folder = minisets.esc50(data)
    rows = datasets.read("esc10")
    assert [row.labels for row in rows] == [("dog",)] * 5
    first = minisets.esc10_first(data)  # its own folder goes before that of ESC-50
    assert short(datasets.read("esc10"), first) == [
        ("001 - Dog bark/1-30226-A.ogg", "dog_bark", "1", "30226", ""),
        ("003 - Sea waves/5-28135-B.ogg", "sea_waves", "5", "28135", ""),
    ]
    alone = minisets.esc10_alone(data / "other")
    assert short(datasets.read("esc10", alone), alone) == [
        ("audio/1-7-B.ogg", "dog_bark", "1", "7", "")
    ]
    assert len(datasets.read("esc10", folder)) == 5


def test_urbansound8k(data: Path) -> None:
    folder = minisets.urbansound8k(data)
    rows = datasets.read("urbansound8k")
    assert short(rows, folder) == [
        ("audio/fold1/101415-3-0-2.wav", "dog_bark", "1", "101415", ""),
        ("audio/fold1/101415-3-0-3.wav", "dog_bark", "1", "101415", ""),
        ("audio/fold10/99812-1-0-0.wav", "car_horn", "10", "99812", ""),
    ]
    assert rows[0].extra == {"salience": "2"}
    assert rows[0].start is None  # the table's start is that of the slice in its recording
    copy = minisets.urbansound8k_copy(data / "other")
    assert short(datasets.read("urbansound8k", copy), copy) == [
        ("audio/fold2/4-3-0-2.ogg", "dog_bark", "2", "4", "")
    ]


def test_fsd50k(data: Path) -> None:
    folder = minisets.fsd50k(data)
    assert short(datasets.read("fsd50k"), folder) == [
        ("FSD50K.dev_audio/64760.wav", "Bark;Dog", "", "", "train"),
        ("FSD50K.dev_audio/16399.wav", "Rain", "", "", "valid"),
        ("FSD50K.eval_audio/37199.wav", "Rain", "", "", "test"),
    ]
    truth = folder / "FSD50K.ground_truth"
    (truth / "eval.csv").unlink()
    assert len(datasets.read("fsd50k")) == 2
    put(truth / "dev.csv", "fname,labels,mids,split\n64760,Miaow,/m/x,train\n")
    with pytest.raises(UsageError, match=r"dev\.csv: clip 64760: label 'Miaow' is not in voc"):
        datasets.read("fsd50k")
    put(truth / "dev.csv", "fname,labels,mids,split\n64760,Dog,/m/x,dev\n")
    with pytest.raises(UsageError, match=r"clip 64760: split 'dev': expected train or val"):
        datasets.read("fsd50k")


def test_audioset_finds_files_by_every_usual_name_and_counts_the_missing(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = minisets.audioset(data)
    rows = datasets.read("audioset")
    assert short(rows, folder) == [
        ("balanced_train_segments/Y--PJHxphWEs.wav", "Speech;Gush", "balanced_train", "--PJHxphWEs",
         "train"),
        ("balanced_train_segments/--aE2O5G5WE_0_10.flac", "Male speech, man speaking",
         "balanced_train", "--aE2O5G5WE", "train"),
        ("balanced_train_segments/-0DLPzsiXXE_30500_40500.m4a", "Speech", "balanced_train",
         "-0DLPzsiXXE", "train"),
        ("unbalanced/part00/Y---1_cCGK4M_0.000_10.000.wav", "Speech", "unbalanced_train",
         "---1_cCGK4M", "train"),
        ("unbalanced/part00/---B_v8ZoBY_30.ogg", "Speech", "unbalanced_train", "---B_v8ZoBY",
         "train"),
        ("eval/-0RWZT-miFs.mp3", "Gush", "eval", "-0RWZT-miFs", "test"),
    ]  # fmt: skip
    assert "1 of 7 files are missing: -0gone-000X_30_40" in caplog.text
    train, valid = splitting.split(rows, train_folds=["balanced_train"], valid_split="test")
    assert (len(train), len(valid)) == (3, 1)
    (folder / "class_labels_indices.csv").unlink()  # this package has the table, too
    assert datasets.read("audioset") == rows


def test_audioset_tables_that_are_cut_or_wrong(data: Path) -> None:
    folder = minisets.audioset(data)
    table = folder / "eval_segments.csv"
    good = '-0RWZT-miFs, 420.000, 430.000, "/t/dd00088"'
    for text, message in (
        (segments(good, count=20371), "1 segments, but its second line says 20,371"),
        (segments('short, 0.000, 10.000, "/m/09x0r"'), "segment 1: 'short' is no YouTube id"),
        (segments('-0RWZT-miFs, 0.000, 10.000, "/m/xx"'), "unknown class '/m/xx'"),
        (segments('-0RWZT-miFs, soon, 10.000, "/m/09x0r"'), "-0RWZT-miFs: expected seconds"),
        (segments("-0RWZT-miFs, 0.000, 10.000"), "row 1: more or fewer cells"),
    ):  # fmt: skip
        put(table, text)
        with pytest.raises(UsageError) as caught:
            datasets.read("audioset")
        assert message in caught.value.message
        assert "eval_segments.csv" in caught.value.message


@pytest.mark.parametrize(("version", "words"), [(1, 30), (2, 35)])
def test_speech_commands(data: Path, version: int, words: int) -> None:
    folder = minisets.speech_commands(data, version)
    rows = datasets.read(f"speech_commands_v{version}")
    assert len(rows) == 6 * words
    assert len(labels_of(rows)) == words
    splits = {split: {row.group for row in rows if row.split == split}
              for split in ("train", "valid", "test")}  # fmt: skip
    assert [len(speakers) for speakers in splits.values()] == [2, 2, 2]
    train, valid = splitting.split(rows)
    assert (len(train), len(valid)) == (2 * words, 2 * words)
    for name in ("validation_list.txt", "testing_list.txt"):
        (folder / name).unlink()
    assert datasets.read(f"speech_commands_v{version}") == rows  # the hash made the lists


def test_speech_commands_in_twelve_classes(data: Path) -> None:
    minisets.speech_commands(data)
    rows = datasets.read("speech_commands_v2_12")
    assert len(labels_of(rows)) == 12
    unknown = [row for row in rows if row.labels == ("_unknown_",)]
    assert len(unknown) == 6 * 25
    assert {row.extra["word"] for row in unknown} == {
        *speech_commands.OTHERS, *speech_commands.ADDED,
    }  # fmt: skip
    silence = [row for row in rows if row.labels == ("_silence_",)]
    found = [(row.path.name, row.start, row.end, row.split) for row in silence]
    assert found == [
        ("running_tap.wav", 0.0, 1.0, "valid"),
        ("running_tap.wav", 0.5, 1.5, "valid"),
        ("running_tap.wav", 1.0, 2.0, "valid"),
        ("running_tap.wav", 1.5, 2.5, "valid"),
        ("white_noise.wav", 0.0, 1.0, "train"),
        ("white_noise.wav", 0.5, 1.5, "train"),
        ("white_noise.wav", 1.0, 2.0, "train"),
        ("white_noise.wav", 1.5, 2.5, "train"),
    ]
    splitting.split(rows)
    assert sum(row.split == "test" for row in rows) == 2 * 35
    tests = minisets.speech_commands_tests(data)
    rows = [row for row in datasets.read("speech_commands_v2_12") if row.split == "test"]
    assert short(rows, tests) == [
        ("yes/0a7c2a8d_nohash_0.wav", "yes", "", "0a7c2a8d", "test"),
        ("_silence_/0.wav", "_silence_", "", "", "test"),
        ("_unknown_/0a7c2a8d_nohash_1.wav.wav", "_unknown_", "", "0a7c2a8d", "test"),
    ]


def test_speech_commands_as_a_table(data: Path) -> None:
    folder = minisets.speech_commands_copy(data)
    (row,) = datasets.read("speech_commands_v1")
    assert short([row], folder) == [
        ("audio/bed/62581901_nohash_0.wav", "bed", "", "62581901", "train")
    ]


def test_speech_commands_that_are_not_whole(data: Path) -> None:
    two = minisets.speech_commands(data, 2)
    with pytest.raises(UsageError, match="'backward' is no word of version 1"):
        datasets.read("speech_commands_v1", two)
    listed = (two / "validation_list.txt").read_text().split()[0]
    (two / listed).unlink()
    with pytest.raises(UsageError, match=f"1 of 210 files are missing: {listed}"):
        datasets.read("speech_commands_v2")
    (two / "testing_list.txt").unlink()
    with pytest.raises(
        UsageError, match=r"testing_list\.txt: missing, but validation_list\.txt is"
    ):
        datasets.read("speech_commands_v2")
    put(two / "no" / "noname.wav")
    (two / "validation_list.txt").unlink()
    with pytest.raises(UsageError, match="expected a name such as 0a7c2a8d_nohash_0"):
        datasets.read("speech_commands_v2")
    for path in (two / "wow").iterdir():
        path.unlink()
    (two / "wow").rmdir()
    with pytest.raises(UsageError, match="no folder 'wow': not version 2, or not all of it"):
        datasets.read("speech_commands_v2")


def test_which_set_is_the_readmes() -> None:
    for number in range(300):
        speaker = f"{number * 7919:08x}"
        assert speech_commands.which_set(f"bed/{speaker}_nohash_3.wav") == minisets.set_of(speaker)
    shares = [speech_commands.which_set(f"{n}_nohash_0.wav") for n in range(4000)]
    assert shares.count("valid") / 4000 == pytest.approx(0.1, abs=0.02)
    assert shares.count("test") / 4000 == pytest.approx(0.1, abs=0.02)


def test_fsdd(data: Path) -> None:
    folder = minisets.fsdd(data)
    rows = datasets.read("fsdd")
    assert short(rows, folder)[:3] == [
        ("recordings/0_jackson_0.wav", "0", "jackson", "jackson", "test"),
        ("recordings/0_jackson_4.wav", "0", "jackson", "jackson", "test"),
        ("recordings/0_jackson_49.wav", "0", "jackson", "jackson", "train"),
    ]
    train, valid = splitting.split(rows, valid_folds=["theo"])
    assert {row.group for row in train} == {"jackson"}
    assert (len(train), len(valid)) == (4, 4)
    with pytest.raises(UsageError, match=r"2 groups are in training and in evaluation: 'jackson'"):
        splitting.split(rows, valid_split="test")
    train, valid = splitting.split(rows, valid_split="test", crossing="keep")
    assert (len(train), len(valid)) == (8, 8)
    put(folder / "recordings" / "eight.wav")
    with pytest.raises(UsageError, match=r"eight\.wav: expected a name such as 7_jackson_32\.wav"):
        datasets.read("fsdd")


def test_nsynth(data: Path) -> None:
    folder = minisets.nsynth(data)
    rows = datasets.read("nsynth")
    assert short(rows, folder) == [
        ("nsynth-train/audio/guitar_acoustic_001-082-050.wav", "guitar", "", "guitar_acoustic_001",
         "train"),
        ("nsynth-valid/audio/organ_electronic_007-082-050.wav", "organ", "", "organ_electronic_007",
         "valid"),
        ("nsynth-test/audio/organ_electronic_007-082-050.wav", "organ", "", "organ_electronic_007",
         "test"),
    ]  # fmt: skip
    assert rows[0].extra == {"pitch": "82", "velocity": "50", "instrument_source_str": "acoustic",
                             "qualities_str": "bright;fast_decay"}  # fmt: skip
    assert [row.labels for row in datasets.read("nsynth_pitch")] == [("82",)] * 3
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "expected an object of notes"),
        ('{"a": {}}', "note 'a': no 'pitch'"),
        ('{"../a": {"pitch": 1, "velocity": 1, "instrument_source_str": "x", "qualities_str": [],'
         ' "instrument_family_str": "x", "instrument_str": "x"}}', "leads out of"),
    ):  # fmt: skip
        put(folder / "nsynth-valid" / "examples.json", text)
        with pytest.raises(UsageError, match=message):
            datasets.read("nsynth")


def test_librispeech_without_labels(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = minisets.librispeech(data)
    rows = datasets.read("librispeech")
    assert short(rows, folder) == [
        ("train-clean-100/103/1240/103-1240-0000.flac", "", "train-clean-100", "103", "train"),
        ("train-clean-100/103/1240/103-1240-0001.flac", "", "train-clean-100", "103", "train"),
        ("dev-clean/84/121123/84-121123-0000.flac", "", "dev-clean", "84", "valid"),
        ("dev-clean/84/121123/84-121123-0001.flac", "", "dev-clean", "84", "valid"),
        ("test-other/367/130732/367-130732-0000.flac", "", "test-other", "367", "test"),
        ("test-other/367/130732/367-130732-0001.flac", "", "test-other", "367", "test"),
    ]
    assert rows[0].extra == {"chapter": "1240", "text": "GO DO YOU HEAR"}
    assert rows[1].extra == {"chapter": "1240"}
    assert "train-clean-100 2 of 28,539" in caplog.text
    assert "train-clean-360" not in caplog.text  # a part that is not there at all is no surprise
    put(folder / "dev-clean" / "84" / "121123" / "85-121123-0000.flac")
    with pytest.raises(UsageError, match=r"expected a name such as 84-121123-0000\.flac"):
        datasets.read("librispeech")


TABLES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "esc50": (minisets.esc50, "meta/esc50.csv", "src_file"),
    "esc10": (minisets.esc10_alone, "esc10.csv", "category"),
    "urbansound8k": (minisets.urbansound8k, "metadata/UrbanSound8K.csv", "fsID"),
    "fsd50k": (minisets.fsd50k, "FSD50K.ground_truth/dev.csv", "split"),
    "speech_commands_v1": (minisets.speech_commands_copy, "speech_commands.csv", "speaker"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_a_column_a_cut_row_and_a_name_that_leads_out(
    name: str, data: Path
) -> None:
    make, table, column = TABLES[name]
    path = make(data) / table
    text = path.read_text()
    put(path, text.replace(column, "other", 1))
    with pytest.raises(UsageError, match=f"{path.name}: no column '{column}' in its first line"):
        datasets.read(name)
    first = text.splitlines()[0]
    put(path, f"{first}\n" + "x," * (first.count(",") - 1) + "\n")
    with pytest.raises(UsageError, match="row 2: more or fewer cells than columns"):
        datasets.read(name)
    row = text.splitlines()[1]
    put(path, f"{first}\n{row.replace(row.split(',')[0], '../../x')}\n")
    with pytest.raises(UsageError, match="leads out of"):
        datasets.read(name)
    put(path, f'{first}\n"x\n')
    with pytest.raises(UsageError, match="after row 1: unexpected end of data"):
        datasets.read(name)


@pytest.mark.parametrize("name", ["esc50", "urbansound8k", "fsd50k", "nsynth"])
def test_a_missing_file_is_named(name: str, data: Path) -> None:
    make = getattr(minisets, name)
    folder = make(data)
    rows = datasets.read(name)
    gone = rows[1].path
    gone.unlink()
    message = f"1 of {len(rows)} files are missing: {gone.relative_to(folder)}"
    with pytest.raises(UsageError) as caught:
        datasets.read(name)
    assert message in caught.value.message
    for row in rows:
        row.path.unlink(missing_ok=True)
    with pytest.raises(UsageError, match=f"none of its {len(rows)} files is there"):
        datasets.read(name)


def test_what_lies_here(caplog: pytest.LogCaptureFixture) -> None:
    """Every set that is really in AUDIOSSL_DATA, where that is set."""
    if not os.environ.get("AUDIOSSL_DATA"):
        pytest.skip("AUDIOSSL_DATA is not set: no real data sets here")
    caplog.set_level(logging.WARNING)
    found = 0
    for name in datasets.names():
        try:
            folder = datasets.get(name).find()
        except UsageError:
            continue
        found += 1
        rows, _ = datasets.get(name).rows(folder)
        assert rows, name
        assert all(row.path.is_file() for row in rows[:50])
        groups = {row.group for row in rows} - {""}
        assert groups or name == "fsd50k"
    assert found
