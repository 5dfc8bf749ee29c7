"""`audiossl.tag` and `audiossl.embed` over several sources: order, a bad one, a bar on stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import audiossl
from audiossl.errors import InputError, UsageError

VERBS: list[Callable[..., Any]] = [audiossl.tag, audiossl.embed]


@pytest.fixture(params=VERBS, ids=lambda verb: verb.__name__)
def verb(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


def test_files_come_in_order_and_a_bad_one_as_an_error_record(verb: Any, clips: Path) -> None:
    paths = [clips / "speech.flac", clips / "none.wav", clips / "crow.wav"]
    found = list(verb(paths))
    assert [record.file for record in found] == [str(path) for path in paths]
    assert [isinstance(record, audiossl.ErrorRecord) for record in found] == [False, True, False]
    assert found[1].code == "missing"
    assert list(map(str, verb(iter(paths)))) == list(map(str, found))  # an iterator, too
    assert list(map(str, verb(tuple(paths)))) == list(map(str, found))


def test_of_a_damaged_file_what_could_be_read_comes_first(
    verb: Any, clips: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.wav"
    torn.write_bytes((clips / "crow.wav").read_bytes()[:-20000])
    good, error, last = verb([torn, clips / "crow.wav"])
    assert (good.file, error.file, error.code) == (str(torn), str(torn), "truncated")
    assert good.end < last.end
    assert last.file == str(clips / "crow.wav")


def test_a_single_path_raises_and_gives_what_the_list_gives(verb: Any, clips: Path) -> None:
    crow = clips / "crow.wav"
    assert list(map(str, verb(str(crow)))) == list(map(str, verb([crow])))
    with pytest.raises(InputError):
        list(verb(clips / "none.wav"))
    with (clips / "crow.wav").open("rb") as file:  # iterable, but one sound
        (record,) = verb(file)
    assert record.file == "-"


def test_no_sources_give_no_records_and_wrong_options_raise(verb: Any) -> None:
    assert list(verb([])) == []
    with pytest.raises(UsageError):
        verb([], pool="none")


def test_progress_counts_files_on_stderr_only_when_asked(
    verb: Any, clips: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [clips / "crow.wav", clips / "none.wav"]
    list(verb(paths, progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert "2/2" in err
    list(verb(paths))
    assert capfd.readouterr() == ("", "")
