"""The journal: what is done is known after any kind of end; what is torn is not believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiossl.errors import InputError, OutputError, UsageError
from audiossl.journal import Journal, key

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


def test_a_file_by_another_name_has_another_key(tmp_path: Path) -> None:
    """Its records would bear the wrong one."""
    file = tmp_path / "a.wav"
    file.write_bytes(b"one")
    assert key(str(file), "a.wav") != key(str(file), "./a.wav")
