"""Shards: written by webdataset, read in place as webdataset reads them, never unpacked."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiossl.data import clip, manifest, reading, shards, splitting, tar_index
from audiossl.data.clip import read_clip
from audiossl.data.clips import Clips, Windows
from audiossl.data.draws import Draw, Stream
from audiossl.data.loader import train_loader
from audiossl.data.rows import Row, fingerprint
from audiossl.errors import InputError, OutputError, UsageError

RATE = 8000


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Nine files of three formats; of the last, three rows."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    made: list[Row] = []
    for i in range(9):
        path = folder / f"sub {i % 2}" / f"clip.{i} é.{('wav', 'flac', 'ogg')[i % 3]}"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, RATE + 100 * i), RATE)
        made.append(
            Row(
                path,
                labels=("dog", "cat;") if i % 2 else (),
                known=("dog", "cat;", "rain") if i % 2 else (),
                fold=str(i % 3),
                group=f"g{i // 2}",
                split=("train", "valid", "")[i % 3],
                number=i,
                extra={"take": chr(65 + i)},
            )
        )
    last = made.pop().path
    made += [Row(last, k / 4, (k + 1) / 4, (f"l{k}",), number=8 + k) for k in range(3)]
    return made


@pytest.fixture(scope="module")
def folder(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as shards of about 40 kB."""
    folder = tmp_path_factory.mktemp("shards")
    written = shards.write(rows, folder, "set", 40_000)
    assert [path.name for path in written] == [f"set-{i:06d}.tar" for i in range(len(written))]
    assert len(written) == 3
    return folder


def facts(row: Row) -> tuple[Any, ...]:
    extra = {key: value for key, value in row.extra.items() if key != "file"}
    return (row.start, row.end, row.labels, row.known, row.fold, row.group, row.split, row.number,
            extra)  # fmt: skip


def content(row: Row) -> bytes:
    with clip.open_clip(row) as source:
        return source.read_bytes() if isinstance(source, Path) else source.read()  # type: ignore[union-attr]


def test_what_is_written_is_read(rows: list[Row], folder: Path) -> None:
    found = reading.read(folder)
    assert [facts(row) for row in found] == [facts(row) for row in rows]
    assert [content(row) for row in found] == [content(row) for row in rows]
    for row, source in zip(found, rows, strict=True):
        np.testing.assert_array_equal(read_clip(row, RATE), read_clip(source, RATE))
        assert clip.clip_seconds(row) == clip.clip_seconds(source)
    assert found[0].extra["file"] == "sub 0/clip.0 é.wav"
    assert found[0].name == f"{folder}/set-000000.tar/00000000-clip.wav"
    assert sorted(path.name for path in folder.iterdir())[:2] == [
        "set-000000.tar",
        "set-000000.tar.index",
    ]


def test_webdataset_reads_the_same(rows: list[Row], folder: Path) -> None:
    """The library's own reader as the oracle: keys, sounds and labels."""
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    found = reading.read(folder)
    ours: dict[str, Row] = {row.member.name: row for row in found if row.member}
    theirs = {f"{s['__key__']}.{suffix}": (s[suffix], json.loads(s["json"]))
              for s in samples for suffix in ("wav", "flac", "ogg") if suffix in s}  # fmt: skip
    assert list(ours) == list(theirs)
    for name, row in ours.items():
        sound, said = theirs[name]
        assert content(row) == sound
        assert list(row.labels) == said.get("labels", said.get("clips", [{}])[-1].get("labels", []))


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    import webdataset

    wave = io.BytesIO()
    soundfile.write(wave, np.zeros(RATE), RATE, format="WAV")
    pattern = str(tmp_path / "w-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=2, verbose=0) as writer:
        for i in range(5):
            text = {"caption": "rain falls", "n": i, "deep": [1], "label": "x"}
            sample = {
                "__key__": f"a/k{i}",
                "wav": wave.getvalue(),
                "cls": 7,
                "txt": "no",
                "json": text,
            }
            writer.write(sample)
    found = reading.read(f"{tmp_path}/w-{{000000..000002}}.tar")
    assert [row.labels for row in found] == [("7",)] * 5
    assert found[3].extra == {"caption": "rain falls", "n": "3", "label": "x"}
    assert [row.number for row in found] == list(range(5))
    assert found[4].path.name == "w-000002.tar"
    assert len(read_clip(found[4], RATE)) == RATE


def test_the_same_rows_give_the_same_bytes_and_shards_can_be_cut_anew(
    rows: list[Row], folder: Path, tmp_path: Path
) -> None:
    for again in (rows, reading.read(folder)):
        for path in shards.write(again, tmp_path, "set", 40_000, overwrite=True):
            assert path.read_bytes() == (folder / path.name).read_bytes()
    (one,) = shards.write(reading.read(folder), tmp_path, "one")
    assert [facts(row) for row in reading.read(one)] == [facts(row) for row in rows]


def test_a_shard_is_walked_once(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = shards.write(rows, tmp_path, "set")
    walks = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda path: walks.append(path) or scan(path))
    first = reading.read(path)
    assert reading.read(path) == first
    assert walks == [path]
    os.utime(path, ns=(1, 1))  # another time of change: perhaps other content
    assert reading.read(path) == first
    assert walks == [path, path]
    beside = path.with_name("set-000000.tar.index")
    values = json.loads(beside.read_bytes())
    wrong: list[Any] = [1, [["a.wav", 0, 1 << 40, {}]], [["a.wav", -5, 1, {}]]]
    entries = [json.dumps({**values, "entries": each}) for each in wrong]
    for damaged in ("", "[]", "{", *entries):
        beside.write_text(damaged)
        assert reading.read(path) == first
    assert len(walks) == 8


def test_the_index_of_a_folder_that_cannot_be_written_is_in_the_cache(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = shards.write(rows, tmp_path, "set")
    monkeypatch.setenv("AUDIOSSL_CACHE", str(tmp_path / "cache"))
    path.with_name("set-000000.tar.index").mkdir()  # a file of this name cannot be made
    first = reading.read(path)
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 1
    monkeypatch.setattr(tar_index, "scan", lambda path: pytest.fail("walked again"))
    assert reading.read(path) == first


def test_names_of_shards(rows: list[Row], folder: Path, tmp_path: Path) -> None:
    whole = reading.read(folder)
    assert reading.read(f"{folder}/set-{{000000..000002}}.tar") == whole
    assert reading.read(f"{folder}/set-*.tar") == whole
    assert reading.read(f"{folder}/set-00000{{0,1,2}}.tar") == whole
    one = reading.read(folder / "set-000001.tar")
    assert [row.extra for row in one] == [row.extra for row in whole if row.path == one[0].path]
    with pytest.raises(UsageError, match=r"2 of 5 missing: .*set-000003\.tar, \.\.\.$"):
        reading.read(f"{folder}/set-{{000000..000004}}.tar")
    with pytest.raises(UsageError, match=r"1 of 1 missing: .*none-\*\.tar$"):
        reading.read(f"{folder}/none-*.tar")
    with pytest.raises(UsageError, match="Unbalanced braces"):
        reading.read(f"{folder}/set-{{0.tar")
    with pytest.raises(UsageError, match="stands for more than 1,000,000 shards"):
        reading.read(f"{folder}/set-{{0..9999}}-{{0..9999}}.tar")
    with pytest.raises(UsageError, match="compressed tar cannot be read in place"):
        reading.read(tmp_path / "a.tar.gz")
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(UsageError, match="no audio in these shards"):
        reading.read(tmp_path / "a.tar")
    (tmp_path / "b.wav").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds shards and loose audio \(b\.wav\)"):
        reading.read(tmp_path)


def test_without_the_library_a_folder_still_works(
    rows: list[Row], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("webdataset")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert len(reading.read(folder)) == len(rows)
    with pytest.raises(UsageError, match=r"need the webdataset library \(pip install"):
        reading.read(f"{folder}/set-{{000000..000002}}.tar")
    with pytest.raises(UsageError, match="written by the webdataset library"):
        shards.write(rows, tmp_path, "set")


def test_any_number_of_workers_gives_the_same_batches_from_any_place(folder: Path) -> None:
    found = reading.read(folder)

    def batches(workers: int, start: int, count: int) -> list[torch.Tensor]:
        items = Clips(found, ["dog"], RATE, 0.5, seed=3)
        stream = Stream(len(items), 4, 3, start)
        return [batch["wave"] for batch in islice(train_loader(items, stream, workers), count)]

    whole = batches(0, 0, 6)
    for a, b in zip(whole, batches(2, 0, 6), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole[2:], batches(1, 8, 4), strict=True):  # as if resumed after 2 updates
        assert torch.equal(a, b)
    items = Windows(found, ["dog"], RATE, 0.5, "repeat")
    assert sum(item["target"].eq(1).sum() for item in (items[i] for i in range(len(items)))) > 0


def test_no_descriptor_is_left_open(folder: Path) -> None:
    items = Clips(reading.read(folder), ["dog"], RATE, 0.5)
    items[Draw(0, 0, 0)]
    before = len(os.listdir("/dev/fd"))
    for i in range(20):
        items[Draw(0, i, i % len(items))]
    assert len(os.listdir("/dev/fd")) == before


def test_a_slice_is_a_file() -> None:
    """Against BytesIO: the same calls give the same."""
    data = bytes(range(256)) * 4
    path = Path(__file__).parents[1] / "data"
    rng = random.Random(0)
    for _ in range(30):
        path = Path(os.environ["HOME"]) / "data.bin"
        path.write_bytes(data)
        offset, size = rng.randrange(900), rng.randrange(100)
        size = min(size, len(data) - offset)
        with tar_index.Slice(path, offset, size) as part:
            whole = io.BytesIO(data[offset : offset + size])
            for _ in range(20):
                count, whence = rng.randrange(40), rng.choice([0, 1, 2])
                move = rng.randrange(-20, 120) if whence else rng.randrange(120)
                position = max(0, (0, whole.tell(), size)[whence] + move)
                assert part.seek(move, whence) == whole.seek(position)
                assert part.read(count) == whole.read(count)
                assert part.tell() == whole.tell()


def test_a_shard_that_shrinks_after_its_index_is_a_bad_clip(
    rows: list[Row], tmp_path: Path
) -> None:
    (path,) = shards.write(rows, tmp_path, "set")
    found = reading.read(path)
    os.truncate(path, 20_000)
    items = Clips(found, [], RATE, 0.5)
    skipped = items[Draw(0, 0, 6)]["skipped"]
    assert [name for name, _ in skipped] == [row.name for row in found[6:]]
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_clip(found[0], RATE)


def test_old_shards_are_kept_or_replaced(rows: list[Row], tmp_path: Path) -> None:
    shards.write(rows, tmp_path, "set", 40_000)
    reading.read(tmp_path)
    for name in ("set-train.tar", "set-2-000000.tar", "set-1.tar", "set-0000001.tar"):
        (tmp_path / name).write_bytes(b"not of this set")
    others = {path.name for path in tmp_path.iterdir() if path.stat().st_size == 15}
    assert len(others) == 4
    with pytest.raises(OutputError, match=r"set-000000\.tar exists: --on-exists overwrite"):
        shards.write(rows, tmp_path, "set")
    assert len(shards.write(rows[:1], tmp_path, "other")) == 1
    (one,) = shards.write(rows[:2], tmp_path, "set", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        *others, "other-000000.tar", "set-000000.tar"
    }  # fmt: skip
    assert [facts(row) for row in reading.read(one)] == [facts(row) for row in rows[:2]]


def test_shards_may_be_cut_anew_in_their_own_place(rows: list[Row], tmp_path: Path) -> None:
    shards.write(rows, tmp_path, "set", 40_000)
    (one,) = shards.write(reading.read(tmp_path), tmp_path, "set", overwrite=True)
    assert list(tmp_path.iterdir()) == [one]
    found = reading.read(tmp_path)
    assert [facts(row) for row in found] == [facts(row) for row in rows]
    assert [content(row) for row in found] == [content(row) for row in rows]


def test_a_failure_leaves_the_old_shards(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.write(rows, tmp_path, "set", 40_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    gone = replace(rows[-1], path=tmp_path / "gone.wav")
    with pytest.raises(InputError, match=r"gone\.wav: No such file"):
        shards.write([*rows[:-3], gone], tmp_path, "set", 40_000, overwrite=True)
    monkeypatch.setitem(sys.modules, "webdataset.writer", None)
    with pytest.raises(UsageError, match="written by the webdataset library"):
        shards.write(rows, tmp_path, "set", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_a_name_that_leads_elsewhere(name: str, rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shards are files in one folder"):
        shards.write(rows, tmp_path, name)


def test_rows_of_shards_split_by_their_groups_or_files(folder: Path) -> None:
    found = reading.read(folder)
    train, valid = splitting.split(found, valid_fraction=0.5)
    assert train
    assert valid
    assert not {row.group for row in train if row.group} & {row.group for row in valid}
    with pytest.raises(UsageError, match="in training and in evaluation"):
        splitting.apart(found[-3:-1], found[-1:])
    assert len(fingerprint(found)) == 64
    with pytest.raises(UsageError, match="no place in a table"):
        manifest.write(folder / "x.csv", found)
