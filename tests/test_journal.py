"""The journal: what is done is known after any kind of end; what is torn is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiossl.errors import UsageError
from audiossl.journal import Journal, key

SETTINGS = {"model": "x", "hop": 1.0}


def filled(path: Path, n: int = 3) -> list[bytes]:
    with Journal(path, SETTINGS, resume=False) as journal:
        for index in range(n):
            journal.add(f"key{index}", [{"file": f"{index}.wav", "n": index}], ok=True)
    return path.read_bytes().splitlines(keepends=True)


def test_entries_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    with Journal(path, SETTINGS, resume=True) as journal:
        for index in range(3):
            offset = journal.find(f"key{index}")
            assert offset is not None
            assert journal.records(offset) == [{"file": f"{index}.wav", "n": index}]
        new = journal.add("key3", [], ok=True)
        assert journal.records(new) == []
    with Journal(path, SETTINGS, resume=True) as journal:
        assert journal.find("key3") == new


def test_a_failed_input_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, SETTINGS, resume=False) as journal:
        journal.add("bad", [{"error": {}}], ok=False)
        assert journal.find("bad") is None
    with Journal(path, SETTINGS, resume=True) as journal:
        assert journal.find("bad") is None


def test_a_line_torn_anywhere_is_dropped_and_the_rest_stands(tmp_path: Path) -> None:
    path = tmp_path / "j"
    lines = filled(path)
    whole, last = b"".join(lines[:-1]), lines[-1]
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        with Journal(path, SETTINGS, resume=True) as journal:
            assert journal.find("key1") is not None
            assert journal.find("key2") is None
            journal.add("key2", [], ok=True)
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


def test_a_changed_file_has_another_key(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(b"one")
    before = key(str(file))
    file.write_bytes(b"longer")
    assert before
    assert key(str(file)) != before
    assert key(str(tmp_path / "none.wav")) == ""
