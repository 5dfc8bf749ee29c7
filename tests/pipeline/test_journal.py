"""The journal: what is done is known after any kind of end; what is torn is not believed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiossl.errors import InputError, OutputError, UsageError
from audiossl.pipeline import journal as journals
from audiossl.pipeline.journal import FolderState, Journal, key

SETTINGS = {"model": "x", "hop": 1.0}


def filled(path: Path, n: int = 3) -> list[bytes]:
    with Journal(path, SETTINGS, resume=False) as journal:
        for index in range(n):
            journal.add(f"key{index}", [{"file": f"{index}.wav", "n": index}])
    return path.read_bytes().splitlines(keepends=True)


def test_entries_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    with Journal(path, SETTINGS, resume=True) as journal:
        for index in range(3):
            entry = journal.find(f"key{index}")
            assert entry is not None
            assert entry.ok
            assert list(journal.records(entry)) == [{"file": f"{index}.wav", "n": index}]
        new = journal.add("key3", [])
        assert list(journal.records(new)) == []
    with Journal(path, SETTINGS, resume=True) as journal:
        assert journal.find("key3") == new


def test_a_failed_input_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, SETTINGS, resume=False) as journal:
        entry = journal.add("bad", [{"n": 1}, {"error": {}}])
        assert not entry.ok
        assert list(journal.records(entry)) == [{"n": 1}, {"error": {}}]
        assert journal.find("bad") is None
    with Journal(path, SETTINGS, resume=True) as journal:
        assert journal.find("bad") is None


def test_a_line_torn_anywhere_is_dropped_and_the_rest_stands(tmp_path: Path) -> None:
    path = tmp_path / "j"
    lines = filled(path)
    whole, last = b"".join(lines[:-2]), b"".join(lines[-2:])  # a record and what closes it
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        with Journal(path, SETTINGS, resume=True) as journal:
            assert journal.find("key1") is not None
            assert journal.find("key2") is None
            journal.add("key2", [])
        with Journal(path, SETTINGS, resume=True) as journal:
            assert journal.find("key2") is not None


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    with pytest.raises(UsageError, match="other options"):
        Journal(path, {**SETTINGS, "hop": 2.0}, resume=True)


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    with Journal(path, SETTINGS, resume=False) as journal:
        assert journal.find("key0") is None


def test_arrays_come_back_to_the_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = [random.standard_normal(7).astype(dtype) for dtype in ("float32", "float16")]
    with Journal(tmp_path / "j", SETTINGS, resume=False) as journal:
        journal.add("a", [{"file": "a", "embedding": vector} for vector in vectors])
    with Journal(tmp_path / "j", SETTINGS, resume=True) as journal:
        entry = journal.find("a")
        assert entry is not None
        for record, vector in zip(journal.records(entry), vectors, strict=True):
            assert record["embedding"].dtype == vector.dtype
            np.testing.assert_array_equal(record["embedding"], vector)


def test_records_go_to_the_disk_as_they_come(tmp_path: Path) -> None:
    def endless() -> Iterator[dict[str, Any]]:
        for n in range(10_000):
            yield {"file": "long.wav", "n": n}
            if n == 9_000:
                assert (tmp_path / "j").stat().st_size > 200_000

    with Journal(tmp_path / "j", SETTINGS, resume=False) as journal:
        entry = journal.add("long", endless())
        assert next(iter(journal.records(entry)))["n"] == 0
        assert sum(1 for _ in journal.records(entry)) == 10_000


def test_an_input_given_up_half_way_is_dropped_and_the_next_is_not(tmp_path: Path) -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield {"n": 1}
        raise InputError("torn")

    with Journal(tmp_path / "j", SETTINGS, resume=False) as journal:
        journal.add("a", [{"n": 0}])
        with pytest.raises(InputError):
            journal.add("b", torn())
        entry = journal.add("c", [{"n": 3}])
        assert list(journal.records(entry)) == [{"n": 3}]
    with Journal(tmp_path / "j", SETTINGS, resume=True) as journal:
        assert journal.find("b") is None
        entry = journal.find("c")
        assert entry is not None
        assert list(journal.records(entry)) == [{"n": 3}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "j").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        Journal(tmp_path / "j", SETTINGS, resume=False)


def test_a_changed_file_has_another_key(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(b"one")
    before = key(str(file), "a.wav")
    file.write_bytes(b"longer")
    assert before
    assert key(str(file), "a.wav") != before
    assert key(str(tmp_path / "none.wav"), "none.wav") == ""
    assert key("a\0b.wav", "a\0b.wav") == ""


def test_a_file_by_another_name_has_another_key(tmp_path: Path) -> None:
    """Its records would bear the wrong one."""
    file = tmp_path / "a.wav"
    file.write_bytes(b"one")
    assert key(str(file), "a.wav") != key(str(file), "./a.wav")


# The state of a folder


def marks(folder: Path, settings: dict[str, Any] | None = None) -> FolderState:
    return FolderState(folder, ".txt", settings or SETTINGS)


def test_marks_know_who_failed_last(tmp_path: Path) -> None:
    names = {"a.wav", "new\nline.wav", "caf\udce9.wav", "[x].wav"}
    first = marks(tmp_path)
    for name in names:
        first.result(name, ok=False)
    first.result("good.wav", ok=True)
    first.add()
    assert marks(tmp_path).failed == names
    second = marks(tmp_path)
    second.result("a.wav", ok=True)
    second.finish()
    again = marks(tmp_path)
    assert again.failed == names - {"a.wav"}
    again.check()
    with pytest.raises(UsageError, match="other options"):
        marks(tmp_path, {"model": "y"}).check()


def test_marks_are_made_with_the_first_file(tmp_path: Path) -> None:
    early = marks(tmp_path)
    early.result("a.wav", ok=False)
    early.finish()
    assert not list(tmp_path.iterdir())


def test_a_torn_mark_is_not_believed(tmp_path: Path) -> None:
    early = marks(tmp_path)
    early.result("a.wav", ok=False)
    early.add()
    with early.path.open("a") as file:
        file.write('["b.wa')
    assert marks(tmp_path).failed == {"a.wav"}


# Several runs at once


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_and_changes_nothing(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "j"
    with Journal(path, SETTINGS, resume=False) as journal:
        journal.add("key0", [{"n": 0}])
        before = path.read_bytes()
        with pytest.raises(OutputError, match="j: another run writes here"):
            Journal(path, SETTINGS, resume=resume)
        assert path.read_bytes() == before
    with Journal(path, SETTINGS, resume=True) as journal:
        assert journal.find("key0") is not None


def test_a_refused_journal_is_let_go(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    with pytest.raises(UsageError) as kept:
        Journal(tmp_path / "j", {}, resume=True)
    Journal(tmp_path / "j", SETTINGS, resume=True).close()
    assert kept


def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "j"
    program = (
        "import sys, time; from pathlib import Path; from audiossl.pipeline.journal import Journal;"
        "journal = Journal(Path(sys.argv[1]), {}, False); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(OutputError, match="another run"):
            Journal(path, {}, resume=True)
        other.kill()
    Journal(path, {}, resume=True).close()


def test_a_journal_removed_while_we_waited_for_it_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs would else write files of one name, of which one has no name any more."""
    path, lock = tmp_path / "j", fcntl.flock
    calls = []

    def removed_first(file: Any, how: int) -> None:
        calls.append(file)
        if len(calls) == 1:
            path.unlink()
        lock(file, how)

    monkeypatch.setattr(journals.fcntl, "flock", removed_first)
    with Journal(path, SETTINGS, resume=False) as journal:
        journal.add("key0", [])
        assert len(calls) == 2
        assert path.read_bytes().count(b"key0") == 1


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here(_file: Any, _how: int) -> None:
        raise OSError(37, os.strerror(37))  # ENOLCK

    monkeypatch.setattr(journals.fcntl, "flock", none_here)
    filled(tmp_path / "j")
    with Journal(tmp_path / "j", SETTINGS, resume=True) as journal:
        assert journal.find("key2") is not None


def test_a_run_killed_before_its_first_line_was_whole_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    head = filled(path)[0]
    for torn in (b"", head[:-1], head[:9]):
        path.write_bytes(torn)
        with Journal(path, SETTINGS, resume=True) as journal:
            journal.add("key0", [])
        with Journal(path, SETTINGS, resume=True) as journal:
            assert journal.find("key0") is not None
