"""Rows of a long file: the samples that one alone gives, and nothing decoded again for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiossl.audio import reading as audio
from audiossl.data import clip
from audiossl.data.clip import RowReader, clip_blocks, read_clip, runs
from audiossl.data.clips import Clips, Windows
from audiossl.data.rows import Row
from audiossl.errors import InputError

RATE, SECONDS = 8000, 120
DIRECT, FORWARD = ("flac", "wav"), ("mp3", "ogg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two minutes of noise in every format."""
    folder = tmp_path_factory.mktemp("long")
    wave = np.random.default_rng(0).normal(0, 0.1, RATE * SECONDS).astype(np.float32)
    for suffix in (*DIRECT, *FORWARD):
        with soundfile.SoundFile(folder / f"long.{suffix}", "w", RATE, 1) as file:
            for second in wave.reshape(SECONDS, RATE):
                file.write(second)
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Seconds decoded since the last call."""
    frames = [0]
    real = audio.AudioStream._read

    def counted(stream: audio.AudioStream) -> np.ndarray:
        block = real(stream)
        frames[0] += len(block)
        return block

    def seconds() -> float:
        count, frames[0] = frames[0], 0
        return count / RATE

    monkeypatch.setattr(audio.AudioStream, "_read", counted)
    return seconds


def rows_of(path: Path) -> list[Row]:
    """2 s of every 3 s; neighbours do not touch."""
    return [Row(path, start, start + 2.0) for start in np.arange(0.5, SECONDS - 3, 3.0)]


@pytest.mark.parametrize("suffix", [*DIRECT, *FORWARD])
def test_rows_in_turn_decode_a_file_about_once(
    folder: Path, suffix: str, decoded: Callable[[], float]
) -> None:
    rows = rows_of(folder / f"long.{suffix}")
    expected = [read_clip(row, RATE) for row in rows]
    alone = decoded()
    reader = RowReader(RATE)
    found = [reader.read(row) for row in rows]
    assert decoded() < 2 * SECONDS
    if suffix in FORWARD:
        assert alone > 10 * SECONDS  # what it would cost one by one
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rate", [RATE, 11025])
@pytest.mark.parametrize("suffix", [*DIRECT, *FORWARD])
def test_any_order_of_rows_gives_what_one_alone_does(folder: Path, suffix: str, rate: int) -> None:
    path = folder / f"long.{suffix}"
    spans = [(40.0, 42.5), (41.0, 41.25), (42.4, 50.0), (20.0, 21.0), (2.0, None), (30.0, 95.0)]
    spans += [(119.5, 140.0), (0.0, 1.0), (60.0, 61.0)]
    reader = RowReader(rate)
    for start, end in spans:
        row = Row(path, start, end)
        np.testing.assert_array_equal(reader.read(row), np.concatenate([*clip_blocks(row, rate)]))


def test_rows_after_an_error_are_read_as_before_it(folder: Path, tmp_path: Path) -> None:
    reader = RowReader(RATE)
    good = Row(folder / "long.mp3", 30.0, 31.0)
    first = reader.read(good)
    with pytest.raises(InputError, match="no sample in this part"):
        reader.read(Row(good.path, 500.0, 501.0))
    np.testing.assert_array_equal(reader.read(good), first)
    whole = good.path.read_bytes()
    cut = tmp_path / "cut.mp3"
    cut.write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.raises(InputError):
            reader.read(Row(cut, 70.0, 72.0))
    np.testing.assert_array_equal(reader.read(Row(cut, 30.0, 31.0)), first)


def test_a_row_that_is_too_long_to_hold_is_not_held(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row(folder / "long.ogg", 20.0, 90.0)
    assert len(list(RowReader(RATE).blocks(row))) > 1
    monkeypatch.setattr(clip, "HELD_SECONDS", 100.0)
    assert len(list(RowReader(RATE).blocks(row))) == 1


def test_clips_in_memory_and_windows_decode_a_file_about_once(
    folder: Path, decoded: Callable[[], float]
) -> None:
    rows = rows_of(folder / "long.mp3")
    kept = Clips(rows, [], RATE, crop_seconds=1.0)
    kept.fill_cache()
    assert decoded() < 2 * SECONDS
    assert sorted(kept.cache) == list(range(len(rows)))
    windows = Windows(rows, [], RATE, 1.0, "repeat")
    waves = [windows[number]["wave"].numpy() for number in range(len(windows))]
    assert decoded() < 2 * SECONDS
    np.testing.assert_array_equal(waves[7], read_clip(rows[3], RATE)[RATE:])


def test_runs_are_rows_of_one_file_that_follow_each_other() -> None:
    a, b = Row(Path("a")), Row(Path("b"))
    assert list(runs([a, replace(a, start=1.0), b, a])) == [[0, 1], [2], [3]]
    assert list(runs([])) == []
