"""The manifest: one table format, or a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audiossl.data import manifest, reading, splitting
from audiossl.data.rows import (
    Member,
    Row,
    balanced_weights,
    fingerprint,
    labels_of,
    target,
    targets,
)
from audiossl.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.flac", "sub/c d.ogg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def table(folder: Path, text: str) -> str:
    path = folder / "clips.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


def test_all_columns(folder: Path) -> None:
    path = table(
        folder,
        "path,start,end,labels,known,fold,group,split,take\n"
        "a.wav,,,Dog;Bark ,,1,x,train,A\n"
        "sub/c d.ogg,0.5,1.5, Rain,Rain;Wind,2,y,valid,B\n",
    )
    first, second = reading.read(path)
    assert first == Row(
        folder / "a.wav", labels=("Dog", "Bark"), fold="1", group="x", split="train",
        number=0, extra={"take": "A"},
    )  # fmt: skip
    assert second == Row(
        folder / "sub" / "c d.ogg", 0.5, 1.5, ("Rain",), ("Rain", "Wind"), "2", "y", "valid",
        1, {"take": "B"},
    )  # fmt: skip


def test_only_a_path_is_needed_and_quotes_blank_lines_and_a_mark_are_fine(folder: Path) -> None:
    path = table(folder, '\ufeffpath\r\n"sub/c d.ogg"\r\n\r\na.wav\r\n')
    assert [row.path.name for row in reading.read(path)] == ["c d.ogg", "a.wav"]


def test_names_that_are_not_utf8_work(folder: Path) -> None:
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    (folder / name).write_bytes(b"x")
    (row,) = reading.read(table(folder, f"path\n{name}\n"))
    assert row.path.exists()
    assert len(fingerprint([row])) == 64


def test_root_moves_the_beginning_of_paths(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = table(tmp_path_factory.mktemp("lists"), "path\na.wav\n")
    with pytest.raises(UsageError, match="1 of 1 files are missing"):
        reading.read(elsewhere)
    assert reading.read(elsewhere, root=str(folder))[0].path == folder / "a.wav"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column `path`"),
        ("file,labels\na.wav,x\n", "no column `path`"),
        ("path,path\na.wav,b.flac\n", "column 'path' is there twice"),
        ("path\n", "no row"),
        ("path,start\na.wav,0,5\n", "line 2: more or fewer cells"),
        ("path,start\na.wav\n", "line 2: more or fewer cells"),
        ("path\n../a.wav\n", "line 2: path '../a.wav' leads out of"),
        ("path\nsub/../../a.wav\n", "leads out of"),
        ("path\n/etc/passwd\n", "leads out of"),
        ("path,x\n,1\n", "line 2: path is empty"),
        ("path,start\na.wav,soon\n", "line 2: start: expected seconds, got 'soon'"),
        ("path,start\na.wav,-1\n", "start: expected seconds"),
        ("path,end\na.wav,nan\n", "end: expected seconds"),
        ("path,end\na.wav,inf\n", "end: expected seconds"),
        ("path,start,end\na.wav,2,2\n", "line 2: end 2 is not after start 2"),
        ("path,split\na.wav,dev\n", "split: expected train, valid or test, got 'dev'"),
        ('path\n"a.wav\n', "not a CSV table"),
        ("path\na.wav\nx.wav\ny.wav\n", "2 of 3 files are missing: "),
    ],
)
def test_bad_tables_name_the_line(text: str, message: str, folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        reading.read(table(folder, text))
    assert message in caught.value.message
    assert "clips.csv" in caught.value.message


def test_a_long_list_of_missing_files_is_cut(folder: Path) -> None:
    text = "path\n" + "".join(f"x{i}.wav\n" for i in range(50))
    with pytest.raises(UsageError, match=r"50 of 50 files are missing: .*x4\.wav, \.\.\.$"):
        reading.read(table(folder, text))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.wav", b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00,path\n"),
        ("x.flac", b"fLaC, in short"),
        ("weights.bin", b"\xff\xd8\x01,\x02\n\x03"),
    ],
)
def test_what_is_no_table_is_not_shown(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        reading.read(tmp_path / name)
    told = "not a table: a CSV file with a column `path`, or a folder"
    assert caught.value.message == f"{tmp_path / name}: {told}"


def test_a_long_first_line_is_cut(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"columns: 12, 12.*\.\.\.\)$") as caught:
        reading.read(table(folder, ",".join(["12"] * 9999) + "\n"))
    assert len(caught.value.message) < 300 + len(str(folder))


def test_links_to_folders_are_followed_and_lead_round_in_no_circle(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = tmp_path_factory.mktemp("disk")
    (disk / "deep").mkdir()
    for name in ("o.wav", "deep/p.wav"):
        (disk / name).write_bytes(b"x")
    (disk / "round").symlink_to(disk)
    (disk / "back").symlink_to(folder)
    (folder / "owl").symlink_to(disk)
    (folder / "again").symlink_to(folder / "sub")  # it has a name of its own here
    (folder / "self").symlink_to(folder)
    (folder / "up").symlink_to(folder.parent)
    (folder / "nowhere").symlink_to(folder / "none")
    rows = reading.read(folder)
    assert [(row.path.relative_to(folder).as_posix(), row.labels) for row in rows] == [
        ("a.wav", ()),
        ("b.flac", ()),
        ("owl/o.wav", ("owl",)),
        ("owl/deep/p.wav", ("owl",)),
        ("sub/c d.ogg", ("sub",)),
    ]
    manifest.write(folder / "out.csv", rows)
    assert reading.read(folder / "out.csv") == rows


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no manifest or folder here"):
        reading.read(tmp_path / "none.csv")


def test_a_folder_gives_its_audio_with_subfolders_as_labels(folder: Path) -> None:
    (folder / "notes.txt").write_text("no audio")
    (folder / ".hidden.wav").write_text("x")
    (folder / "sub" / "deep").mkdir()
    (folder / "sub" / "deep" / "d.WAV").write_text("x")
    rows = reading.read(folder)
    found = [(row.path.relative_to(folder).as_posix(), row.labels, row.number) for row in rows]
    assert found == [
        ("a.wav", (), 0),
        ("b.flac", (), 1),
        ("sub/c d.ogg", ("sub",), 2),
        ("sub/deep/d.WAV", ("sub",), 3),
    ]
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="no audio file"):
        reading.read(empty)


def test_written_tables_read_back(folder: Path) -> None:
    rows = [
        Row(
            folder / "a.wav",
            0.1,
            2.5,
            ("Dog", "Cat, big"),
            ("Dog",),
            "1",
            'g"x',
            "train",
            0,
            {"n": "1"},
        ),
        Row(folder / "sub" / "c d.ogg", number=1, extra={"n": ""}),
    ]
    manifest.write(folder / "out.csv", rows)
    assert reading.read(folder / "out.csv") == rows
    with pytest.raises(UsageError, match="lies outside"):
        manifest.write(folder / "sub" / "out.csv", rows)


@pytest.mark.parametrize(
    "name", ["a\rb.wav", "a\r\nb.wav", "a\nb.wav", " a.wav", "a.wav ", "\ta.wav\xa0", 'a",;.wav']
)
def test_odd_names_read_back(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "z.wav").write_bytes(b"x")
    rows = [
        Row(tmp_path / name, labels=("a\rb", "c d"), group=name, extra={"note": f" {name}"}),
        Row(tmp_path / "z.wav", group=name.strip(), number=1, extra={"note": ""}),
    ]
    manifest.write(tmp_path / "out.csv", rows)
    assert reading.read(tmp_path / "out.csv") == rows
    folder = reading.read(tmp_path)
    manifest.write(tmp_path / "again.csv", folder)
    assert reading.read(tmp_path / "again.csv") == folder


@pytest.mark.parametrize("label", ["cat;dog", ";", " owl", "owl\n", ""])
@pytest.mark.parametrize("column", ["labels", "known"])
def test_a_label_that_a_table_would_misread_is_refused(
    label: str, column: str, folder: Path
) -> None:
    row = Row(folder / "a.wav", **{column: ("fine", label)})  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        manifest.write(folder / "out.csv", [row])
    assert f"a.wav: a table cannot hold the label {label!r}" in caught.value.message
    assert not (folder / "out.csv").exists()
    with pytest.raises(UsageError, match="cannot hold the fold ' 1'"):
        manifest.write(folder / "out.csv", [Row(folder / "a.wav", fold=" 1")])


def test_targets_present_absent_unknown() -> None:
    path = Path("x.wav")
    rows = [
        Row(path, labels=("b",)),
        Row(path),
        Row(path, labels=("a",), known=("b", "elsewhere")),
        Row(path, labels=("elsewhere",), known=("elsewhere",)),
    ]
    expected = [[0, 1, 0], [0, 0, 0], [1, 0, -1], [-1, -1, -1]]
    np.testing.assert_array_equal(targets(rows, ["a", "b", "c"]), expected)
    assert target(rows[0], {}).shape == (0,)
    assert targets(rows, []).shape[1] == targets([], ["a"]).shape[0] == 0
    assert labels_of(rows) == ["a", "b", "elsewhere"]


def named(count: int, **fields: list[str]) -> list[Row]:
    return [
        Row(Path(f"{i}.wav"), number=i, **{key: values[i] for key, values in fields.items()})  # type: ignore[arg-type]
        for i in range(count)
    ]


def test_split_by_folds() -> None:
    rows = named(4, fold=["1", "2", "1", "3"], split=["", "", "", "test"])
    train, valid = splitting.split(rows, valid_folds=["1"])
    assert [row.number for row in train] == [1]
    assert [row.number for row in valid] == [0, 2]
    with pytest.raises(UsageError, match=r"no row in fold '9' \(folds: 1, 2\)"):
        splitting.split(rows, valid_folds=["1", "9"])


def test_split_by_column() -> None:
    rows = named(4, split=["train", "", "valid", "test"])
    train, valid = splitting.split(rows)
    assert [row.number for row in train] == [0, 1]
    assert [row.number for row in valid] == [2]


def test_split_by_fraction_keeps_groups_whole_and_old_rows_in_place() -> None:
    groups = [f"g{i // 3}" for i in range(3000)]
    train, valid = splitting.split(named(3000, group=groups), valid_fraction=0.2)
    assert not {row.group for row in train} & {row.group for row in valid}
    assert len(valid) / 3000 == pytest.approx(0.2, abs=0.04)
    _, sooner = splitting.split(named(1500, group=groups), valid_fraction=0.2)
    assert [row.number for row in sooner] == [row.number for row in valid if row.number < 1500]


def test_a_group_or_a_file_on_both_sides_is_refused() -> None:
    rows = named(3, fold=["1", "2", "2"], group=["a", "a", "b"])
    with pytest.raises(UsageError, match="1 group is in training and in evaluation: 'a'"):
        splitting.split(rows, valid_folds=["1"])
    twice = [Row(Path("x.wav"), split="train"), Row(Path("x.wav"), split="valid")]
    with pytest.raises(UsageError, match=r"1 file is in training and in evaluation: 'x\.wav'"):
        splitting.split(twice)


def test_balanced_weights_equal_a_slow_loop() -> None:
    labels = [("a",), ("a", "b"), ("b",), ("b",), (), ("z",)]
    rows = [Row(Path(str(i)), labels=names) for i, names in enumerate(labels)]
    weights = balanced_weights(rows, ["a", "b"])
    expected = np.array([1 / 2, 1 / 2 + 1 / 3, 1 / 3, 1 / 3, 0, 0])
    expected[4:] = expected[:4].mean()
    np.testing.assert_allclose(weights, expected / expected.sum())
    np.testing.assert_allclose(balanced_weights(rows, []), np.full(6, 1 / 6))


def test_fingerprint_knows_labels_and_sizes(folder: Path) -> None:
    rows = reading.read(folder)
    before = fingerprint(rows)
    assert before == fingerprint(reading.read(folder))
    assert before != fingerprint(rows[:-1])
    (folder / "a.wav").write_bytes(b"longer than it was")
    assert before != fingerprint(rows)


def test_rows_marked_valid_are_never_trained_on() -> None:
    rows = named(4, fold=["1", "2", "1", "2"], split=["train", "valid", "", "valid"])
    train, valid = splitting.split(rows, valid_folds=["1"])
    assert ([row.number for row in train], [row.number for row in valid]) == ([], [0, 2])
    train, _ = splitting.split(rows, valid_fraction=1e-9)
    assert [row.number for row in train] == [0, 2]


def test_the_test_split_may_be_evaluated_and_folds_chosen_to_train_on() -> None:
    rows = named(5, fold=["a", "b", "a", "c", "c"], split=["train", "train", "valid", "test", ""])
    train, valid = splitting.split(rows, valid_split="test")
    assert ([row.number for row in train], [row.number for row in valid]) == ([0, 1, 4], [3])
    train, valid = splitting.split(rows, train_folds=["b", "c"], valid_split="test")
    assert ([row.number for row in train], [row.number for row in valid]) == ([1, 4], [3])
    with pytest.raises(UsageError, match=r"no row in fold 'd' \(folds: a, b, c\)"):
        splitting.split(rows, train_folds=["d"])


def test_crossing_groups_are_refused_dropped_or_kept() -> None:
    train = named(3, group=["a", "b", ""])
    valid = [Row(Path("v.wav"), group="a"), Row(Path("w.wav"))]
    with pytest.raises(UsageError, match=r"1 group is .* 'a' \(data\.crossing: drop leaves them"):
        splitting.apart(train, valid)
    assert [row.number for row in splitting.apart(train, valid, "drop")] == [1, 2]
    assert splitting.apart(train, valid, "keep") == train
    with pytest.raises(UsageError, match=r"1 file is in training and in evaluation: '0\.wav'"):
        splitting.apart(train, [Row(Path("0.wav"))], "keep")


def test_members_of_one_file_are_files_of_their_own() -> None:
    rows = [Row(Path("x.tar"), member=Member(name, i, 1)) for i, name in enumerate("ab")]
    splitting.apart(rows[:1], rows[1:])
    with pytest.raises(UsageError, match=r"'x\.tar/a'"):
        splitting.apart(rows[:1], rows[:1])
    assert fingerprint(rows) != fingerprint(rows[::-1])
    many = [Row(Path("x.tar"), member=Member(f"{i}.wav", i, 1)) for i in range(200)]
    assert 60 < len(splitting.split(many, valid_fraction=0.5)[1]) < 140
