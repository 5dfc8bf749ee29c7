"""Tars that must not be read, in every way, and what is left alone in those that are."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiossl.data import reading, shards, tar_index
from audiossl.data.rows import Member
from audiossl.errors import AudiosslError, InputError

# What a shard must not be. Each entry makes a tar file of bytes.


def tar(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member, io.BytesIO(bytes(member.size)))
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            file.addfile(info, io.BytesIO(member[1]))
    return made.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def sparse() -> bytes:
    info = tarfile.TarInfo("a.wav")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000"}
    return tar(info)


def said(values: Any) -> bytes:
    return tar(("a.wav", b"x"), ("a.json", json.dumps(values).encode()))


def long_name(size: int) -> bytes:
    """A GNU header that claims a name of `size` bytes."""
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


GOOD = tar(("a.wav", b"x" * 700), ("a.json", b"{}"), ("b.wav", b"y" * 700))

BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "above": (lambda: tar(("../a.wav", b"x")), "the name '../a.wav' leads elsewhere"),
    "above inside": (lambda: tar(("b/../../a.wav", b"x")), "leads elsewhere"),
    "absolute": (lambda: tar(special("/a.wav", tarfile.REGTYPE)), "leads elsewhere"),
    "backslash": (lambda: tar(("..\\a.wav", b"x")), "leads elsewhere"),
    "symlink": (lambda: tar(special("a.wav", tarfile.SYMTYPE, "/etc/passwd")), "is a link"),
    "hard link": (lambda: tar(("b.wav", b"x"), special("a", tarfile.LNKTYPE, "b")), "is a link"),
    "character device": (lambda: tar(special("a.wav", tarfile.CHRTYPE)), "a device"),
    "block device": (lambda: tar(special("a.wav", tarfile.BLKTYPE)), "a device"),
    "fifo": (lambda: tar(special("a.wav", tarfile.FIFOTYPE)), "a device"),
    "holes": (sparse, "has holes"),
    "two sounds": (lambda: tar(("a.wav", b"x"), ("a.flac", b"x")), "two sounds have the key 'a'"),
    "a name twice": (lambda: tar(("a.wav", b"x"), ("a.wav", b"x")), "two sounds have the key 'a'"),
    "long name": (lambda: long_name(1 << 33), "over 1 MB"),
    "large json": (lambda: tar(("a.json", b" " * (1 << 20) + b"{}")), "no description of a clip"),
    "joined": (lambda: GOOD + GOOD, "several tars in one"),
    "junk": (lambda: GOOD[:2560] + b"\1" * 512 + GOOD[3072:], "damaged, or several tars"),
    "text": (lambda: b"hello" * 500, "not a tar"),
    "gzip": (lambda: b"\x1f\x8b" + bytes(2000), "not a tar"),
    "no json": (lambda: tar(("a.wav", b"x"), ("a.json", b"{")), "a.json: cannot be read"),
    "deep json": (lambda: tar(("a.wav", b"x"), ("a.json", b"[" * 99999)), "a.json: cannot be read"),
    "list": (lambda: said([1]), "a.json: expected an object"),
    "labels": (lambda: said({"labels": [1]}), "a.wav: labels: expected a list of names, got [1]"),
    "clips": (lambda: said({"clips": [1]}), "clips: expected a list of objects"),
    "fold": (lambda: said({"fold": [1]}), "fold: expected text, got [1]"),
    "split": (lambda: said({"split": "dev"}), "split: expected train, valid or test, got 'dev'"),
    "start": (lambda: said({"start": -1}), "start: expected seconds, got -1"),
    "start nan": (lambda: said({"start": float("nan")}), "start: expected seconds"),
    "end": (lambda: said({"start": 2, "end": 1.5}), "end: expected more than start 2, got 1.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_shards_are_named(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    path = tmp_path / "bad-000000.tar"
    path.write_bytes(make())
    with pytest.raises(InputError) as caught:
        reading.read(path)
    assert "bad-000000.tar" in caught.value.message
    assert message in caught.value.message
    assert [item.name for item in tmp_path.iterdir() if item.suffix == ".wav"] == []


def test_a_cut_shard_is_named_wherever_it_is_cut(tmp_path: Path) -> None:
    end = len(GOOD.rstrip(b"\0"))
    end += -end % 512  # where the mark of the end begins
    path = tmp_path / "cut.tar"
    sizes = [0, 1, 511, 512, 700, 1024, 1536, 2047, 2048, 2560, 3072, end - 1, end, end + 511]
    for size in sizes:
        path.write_bytes(GOOD[:size])
        with pytest.raises(InputError, match=r"cut\.tar: .*cut"):
            reading.read(path)
    path.write_bytes(GOOD[: end + 512])
    assert [row.member for row in reading.read(path)] == [
        Member("a.wav", 512, 700),
        Member("b.wav", 3072, 700),
    ]


def test_flipped_bytes_end_in_an_error_or_in_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "index", tar_index.scan)  # without a file of its own each time
    rng = random.Random(0)
    named = ("d/é" + "n" * 150 + ".wav", b"x" * 99)
    good = tar(named, ("a.json", b'{"labels": ["b"]}'), ("a.wav", b""))
    path = tmp_path / "a.tar"
    for _ in range(200):
        data = bytearray(good)
        for _ in range(rng.choice([1, 2, 40])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            rows = shards.read(path)
        except AudiosslError:
            continue
        assert all(row.member and row.member.offset + row.member.size <= len(data) for row in rows)


def test_folders_hidden_and_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    names = ["d/a.b.wav", "d/a.txt", "d/._c.wav", "d/c.WAV", "README", "d.e/f.flac"]
    path.write_bytes(tar(special("d", tarfile.DIRTYPE), *((name, b"x") for name in names)))
    names = [row.member.name for row in reading.read(path) if row.member]
    assert names == ["d/c.WAV", "d.e/f.flac"]
