"""Sounds from a place within them: the same samples as when decoded from their start."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiossl.audio import reading as audio
from audiossl.data.clip import Forward, read_clip
from audiossl.data.clips import Clips, Windows
from audiossl.data.draws import Draw
from audiossl.data.rows import Row
from audiossl.errors import InputError, UsageError

RATE = 16000
SECONDS = 31
FORMATS = {
    "mono.wav": {"subtype": "PCM_16"},
    "stereo.wav": {"subtype": "FLOAT"},
    "adpcm.wav": {"subtype": "IMA_ADPCM"},
    "big.aiff": {"subtype": "PCM_24"},
    "mono.flac": {},
    "stereo.flac": {},
    "mono.ogg": {"subtype": "VORBIS"},
    "stereo.ogg": {"subtype": "VORBIS"},
    "opus.ogg": {"subtype": "OPUS"},
    "mono.mp3": {},
}
SEEKABLE = ("mono.wav", "stereo.wav", "big.aiff", "mono.flac", "stereo.flac")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    time = np.arange(RATE * SECONDS + 77) / RATE
    tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * time) * time)
    wave = (tone + 0.1 * rng.standard_normal(len(time))).astype(np.float32)
    for name, options in FORMATS.items():
        channels = np.stack([wave, wave[::-1]], 1) if name.startswith("stereo") else wave
        soundfile.write(folder / name, channels, RATE, **options)
    return folder


def from_there(source: audio.Source, start: float, rate: int | None = None) -> np.ndarray:
    with audio.stream(source, rate, start=start) as blocks:
        return np.concatenate([np.zeros(0, np.float32), *blocks])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Seconds that were decoded since the last call."""
    seconds = []
    real = audio.AudioStream._read

    def spy(self: audio.AudioStream) -> np.ndarray:
        block = real(self)
        seconds.append(len(block) / self.info.rate)
        return block

    monkeypatch.setattr(audio.AudioStream, "_read", spy)

    def since() -> float:
        total = sum(seconds)
        seconds.clear()
        return total

    return since


@pytest.mark.parametrize("name", FORMATS)
def test_samples_are_those_of_decoding_from_the_start(
    name: str, sounds: Path, decoded: Callable[[], float]
) -> None:
    path = sounds / name
    for rate in (RATE, 8000, 22050):
        whole, _ = audio.read(path, rate)
        for start in (0.0, 3.3, 10.01, 17.1234567, 30.999):
            decoded()
            part = from_there(path, start, rate)
            if name in SEEKABLE and start > 10:
                assert decoded() < SECONDS - start + 1.2
            else:
                assert decoded() == pytest.approx(SECONDS, abs=0.2)
            expected = whole[round(start * rate) :]
            assert part.shape == expected.shape
            if rate == RATE or start < 10:
                np.testing.assert_array_equal(part, expected)
            else:  # soxr's transforms begin elsewhere and round otherwise
                np.testing.assert_allclose(part, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["mono.wav", "mono.flac", "mono.ogg"])
def test_objects_and_pipes(name: str, sounds: Path, decoded: Callable[[], float]) -> None:
    expected = audio.read(sounds / name)[0][RATE * 20 :]
    content = (sounds / name).read_bytes()
    decoded()
    np.testing.assert_array_equal(from_there(io.BytesIO(content), 20.0), expected)
    assert (decoded() < 12) == (name in SEEKABLE)
    there, here = os.pipe()

    def feed() -> None:
        with open(here, "wb") as file:
            file.write(content)

    threading.Thread(target=feed).start()
    with open(there, "rb") as file:
        np.testing.assert_array_equal(from_there(file, 20.0), expected)


@pytest.mark.parametrize("name", ["mono.wav", "stereo.wav", "mono.flac"])
@pytest.mark.parametrize("start", [12.0, 25.0])
def test_a_cut_sound_is_said_to_be_cut(
    name: str, start: float, sounds: Path, tmp_path: Path
) -> None:
    """Cut behind the start, and before it: as when decoded from the start."""
    content = (sounds / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 6 // 10])

    def problem(begin: float) -> tuple[str, str]:
        with pytest.raises(InputError) as caught:
            from_there(tmp_path / name, begin)
        return caught.value.code, caught.value.message

    assert problem(start) == problem(0.0)
    assert problem(start)[0] == "truncated"


def test_a_start_behind_the_end_or_of_no_use(sounds: Path) -> None:
    for name in FORMATS:
        assert not len(from_there(sounds / name, SECONDS + 5.0))
    with pytest.raises(InputError, match="no sample in this part"):
        read_clip(Row(sounds / "mono.flac", start=40.0), RATE)
    for start in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="a start of"):
            audio.stream(sounds / "mono.wav", start=start)


def test_where_a_sample_is_no_number_is_counted_from_the_start(tmp_path: Path) -> None:
    wave = np.zeros(RATE * 20, np.float32)
    wave[RATE * 15] = np.nan
    soundfile.write(tmp_path / "x.wav", wave, RATE, subtype="FLOAT")
    for start in (12.0, 0.0):
        with pytest.raises(InputError, match=r"at 15\.000 s"):
            from_there(tmp_path / "x.wav", start)


@pytest.mark.parametrize("name", SEEKABLE)
def test_a_crop_decodes_little_more_than_itself(
    name: str, sounds: Path, decoded: Callable[[], float]
) -> None:
    row = Row(sounds / name, start=28.0, end=29.0)
    whole, _ = audio.read(sounds / name, 22050)
    decoded()
    part = read_clip(row, 22050)
    assert decoded() < 4
    np.testing.assert_allclose(part, whole[22050 * 28 : 22050 * 29], atol=1e-6, rtol=0)
    items = Clips([Row(sounds / name)], [], RATE, 1.0)
    decoded()
    late = items.crop(0, 0.99)
    assert decoded() < 4
    start = round(0.99 * (SECONDS + 77 / RATE - 1) * RATE)
    np.testing.assert_array_equal(late, audio.read(sounds / name)[0][start : start + RATE])
    assert items[Draw(0, 0, 0)]["wave"].shape == (RATE,)


@pytest.mark.parametrize("name", ["mono.flac", "mono.mp3"])
@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_windows_of_a_long_file_are_read_forward(name: str, seconds: float, sounds: Path) -> None:
    row = Row(sounds / name, start=1.0, end=30.0)
    windows = Windows([row], [], 8000, seconds, "zero")
    expected = read_clip(row, 8000)
    size = windows.samples
    assert len(windows) == round(29 / seconds)

    def check(numbers: range) -> None:
        for i in numbers:
            wave = windows[i]["wave"].numpy()
            there = expected[i * size : (i + 1) * size]
            np.testing.assert_array_equal(wave[: len(there)], there)

    check(range(len(windows)))
    check(range(0, len(windows), 3))
    check(range(len(windows) - 1, -1, -1))


def test_windows_of_a_long_file_keep_little_of_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(RATE * 900, np.float32), RATE)
    windows = Windows([Row(tmp_path / "long.wav")], [], RATE, 2.0, "zero")
    tracemalloc.start()
    for i in range(len(windows)):
        windows[i]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < RATE * 900 * 4 / 8  # bytes: an eighth of the whole as float32


def test_no_window_of_a_long_file_that_is_cut_counts(sounds: Path, tmp_path: Path) -> None:
    content = (sounds / "mono.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    windows = Windows([Row(tmp_path / "cut.wav", labels=("a",))], ["a"], RATE, 2.0, "zero")
    for i in range(len(windows)):
        item = windows[i]
        assert item["target"].tolist() == [-1]
        assert not item["wave"].any()
        assert "decoded" in item["skipped"][0][1]


@pytest.mark.parametrize("samples", [1, 700, 4096, 100_000])
def test_forward_gives_any_parts_in_order(samples: int, sounds: Path) -> None:
    row = Row(sounds / "mono.wav")
    expected = read_clip(row, RATE)
    forward = Forward(row, RATE)
    for start in sorted(np.random.default_rng(samples).integers(0, len(expected), 20).tolist()):
        np.testing.assert_array_equal(
            forward.part(start, samples), expected[start : start + samples]
        )
        assert forward.begin <= start
    assert not len(forward.part(len(expected) + 5, 3))
