"""Names of inputs: arguments, folders, globs, lists."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from audiossl.errors import InputError, UsageError
from audiossl.pipeline import inputs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.FLAC", "sub dir/c.ogg", "notes.txt", ".hidden.wav", "._a.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(*args: str, **options: object) -> list[str]:
    return [item.name for item in inputs.expand(args, **options)]  # type: ignore[arg-type]


def test_a_folder_gives_its_audio_files_sorted_and_recursive(tree: Path) -> None:
    found = list(inputs.expand([str(tree)]))
    assert [item.relative for item in found] == ["a.FLAC", "b.wav", "sub dir/c.ogg"]
    assert all(os.path.isfile(item.path) for item in found)


def test_a_file_given_by_name_is_taken_whatever_its_suffix(tree: Path) -> None:
    assert names(str(tree / "notes.txt")) == [str(tree / "notes.txt")]


def test_globs_recurse_and_a_file_with_that_very_name_comes_first(tree: Path) -> None:
    assert names(str(tree / "**" / "*.ogg")) == [str(tree / "sub dir/c.ogg")]
    odd = tree / "take[1].wav"
    odd.write_bytes(b"x")
    assert names(str(odd)) == [str(odd)]


@pytest.mark.parametrize("what", ["empty folder", "pattern"])
def test_what_matches_nothing_is_an_error_of_that_input(tmp_path: Path, what: str) -> None:
    argument = str(tmp_path) if what == "empty folder" else str(tmp_path / "*.wav")
    (item,) = inputs.expand([argument])
    assert isinstance(item.error, InputError)
    assert item.error.code == "missing"


@pytest.mark.parametrize("null", [False, True])
def test_lists_keep_every_name_byte_for_byte(null: bool) -> None:
    odd = [b"a b.wav", b"-leading.wav", b"caf\xe9.wav", "ł.wav".encode(), b"*.wav", b"tab\t.wav"]
    odd += [b"new\nline.wav"] if null else []
    separator = b"\0" if null else b"\n"
    data = separator.join(odd)
    for tail in (b"", separator):
        got = names(files_from=io.BytesIO(data + tail), null=null)
        assert [os.fsencode(name) for name in got] == odd


@pytest.mark.parametrize("nothing", ["nodir/", "", "nodir/.", "nodir/..", "a\0b.wav"])
def test_a_name_that_no_file_can_have_is_missing(nothing: str) -> None:
    (item,) = inputs.expand([nothing])
    assert isinstance(item.error, InputError)
    assert (item.name, item.error.code) == (nothing, "missing")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("data", [b"a.wav\r\nb.wav\r\n", b"a.wav\nb.wav", b"\na.wav\nb.wav"])
def test_lists_from_windows_bear_marks(data: bytes, mark: bytes) -> None:
    assert names(files_from=io.BytesIO(mark + data)) == ["a.wav", "b.wav"]


def test_a_list_of_bare_names_is_taken_byte_for_byte() -> None:
    assert names(files_from=io.BytesIO(b"\xef\xbb\xbfa.wav\0"), null=True) == ["\ufeffa.wav"]


def test_stdin_is_read_once() -> None:
    with pytest.raises(UsageError, match="only once"):
        inputs.expand(["-", "a.wav", "-"])


def test_a_list_is_followed_while_it_grows() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader:
        found = inputs.expand([], reader)
        os.write(write, b"first.wav\nseco")
        assert next(found).name == "first.wav"
        os.write(write, b"nd.wav\n")
        assert next(found).name == "second.wav"
        os.close(write)
        assert list(found) == []


def test_something_that_is_no_list_is_refused() -> None:
    with pytest.raises(InputError, match="list of file names"):
        names(files_from=io.BytesIO(b"x" * (3 << 20)))


def test_stdin_bears_the_name_it_is_given() -> None:
    (item,) = inputs.expand(["-"], stdin_name="talk.mp4")
    assert (item.name, item.path) == ("talk.mp4", "-")


def test_a_hundred_thousand_names_need_no_memory() -> None:
    data = b"".join(b"%06d.wav\0" % n for n in range(100_000))
    assert sum(1 for _ in inputs.expand([], io.BytesIO(data), null=True)) == 100_000
