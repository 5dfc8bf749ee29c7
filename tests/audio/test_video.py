"""video.py: what FFmpeg reads, with the [video] extra and without."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from malformed import sound

from audiossl.audio import reading as audio
from audiossl.audio.reading import Limits
from audiossl.errors import InputError

RATE = 44100
PIPE = "ffmpeg -v error -i FILE -f wav - | audiossl tag -"

TRACKS = {
    "m4a": ["-c:a", "aac"],
    "mp4": ["-f", "lavfi", "-i", "color=s=64x64:d=3", "-shortest", "-c:a", "aac"],
    "mov": ["-c:a", "aac"],
    "mkv": ["-c:a", "aac"],
    "webm": ["-c:a", "libopus", "-ar", "48000"],
    "aac": ["-c:a", "aac"],
    "ts": ["-c:a", "aac"],
    "avi": ["-c:a", "mp2"],
    "wma": ["-c:a", "wmav2"],
    "flv": ["-c:a", "aac"],
    "ac3": ["-c:a", "ac3"],
    "tta": ["-c:a", "tta"],
    "wv": ["-c:a", "wavpack"],
    "oga": ["-c:a", "flac", "-f", "ogg"],
}

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("video")
    wave = np.stack([sound(1, RATE, 3.0), sound(9, RATE, 3.0)], axis=1)
    soundfile.write(folder / "x.wav", wave, RATE)
    for suffix, arguments in TRACKS.items():
        command = ["ffmpeg", "-v", "error", "-y", "-i", folder / "x.wav", *arguments]
        subprocess.run([*command, folder / f"x.{suffix}"], check=True)
    return {suffix: folder / f"x.{suffix}" for suffix in ("wav", *TRACKS)}


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation at the same times."""
    length = min(len(one), len(other))
    return float(np.corrcoef(one[:length], other[:length])[0, 1])


@needs_ffmpeg
@pytest.mark.parametrize("suffix", TRACKS)
def test_opens_through_pyav(clips: dict[str, Path], suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the [video] extra is not installed")
    expected, _ = audio.read(clips["wav"], 16000)
    hidden = tmp_path / "clip.wav"  # content counts
    shutil.copy(clips[suffix], hidden)
    wave, rate = audio.read(hidden, 16000)
    assert (rate, wave.dtype) == (16000, np.float32)
    assert abs(len(wave) - len(expected)) < 0.15 * 16000
    # Streams without an index keep the encoder's delay: 1024 or 2112 samples.
    best = max(likeness(wave[shift:], expected) for shift in range(0, 1200, 2))
    assert best > 0.95
    info = audio.info(hidden)
    assert info.channels == 2
    assert info.rate in (RATE, 48000)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["m4a", "webm", "mov"])
def test_times_are_exact(clips: dict[str, Path], suffix: str) -> None:
    """Where the container says how long the encoder's delay is (Matroska with AAC does not)."""
    pytest.importorskip("av", reason="the [video] extra is not installed")
    expected, _ = audio.read(clips["wav"], 16000)
    wave, _ = audio.read(clips[suffix], 16000)
    likes = [likeness(wave[200 + shift :], expected[200:]) for shift in range(-200, 200)]
    assert abs(int(np.argmax(likes)) - 200) <= 1


@needs_ffmpeg
def test_pipes_and_damage(clips: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the [video] extra is not installed")
    data = clips["m4a"].read_bytes()
    whole, _ = audio.read(clips["m4a"])

    class Once(io.BytesIO):
        def seekable(self) -> bool:
            return False

    np.testing.assert_array_equal(audio.read(Once(data))[0], whole)
    with pytest.raises(InputError) as caught:  # the index stands at the end
        audio.read(io.BytesIO(data[: len(data) // 2]))
    assert caught.value.code == "corrupt"
    started = tmp_path / "started.m4a"
    command = ["ffmpeg", "-v", "error", "-i", clips["wav"], "-movflags", "faststart", started]
    subprocess.run(command, check=True)
    data = started.read_bytes()
    with pytest.raises(InputError) as caught:
        audio.read(io.BytesIO(data[: len(data) // 2]))
    assert caught.value.code in ("truncated", "corrupt")


@needs_ffmpeg
def test_limits_hold(clips: dict[str, Path]) -> None:
    pytest.importorskip("av", reason="the [video] extra is not installed")
    with pytest.raises(InputError, match="--max-channels"):
        audio.read(clips["m4a"], limits=Limits(max_channels=1))
    with pytest.raises(InputError, match="--max-duration"):
        audio.read(clips["aac"], limits=Limits(max_seconds=1))


@needs_ffmpeg
def test_a_film_without_sound(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the [video] extra is not installed")
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=s=64x64:d=1"]
    subprocess.run([*command, tmp_path / "x.mp4"], check=True)
    with pytest.raises(InputError, match="no audio track"):
        audio.read(tmp_path / "x.mp4")


@needs_ffmpeg
@pytest.mark.parametrize("suffix", TRACKS)
def test_without_pyav_the_error_says_what_works(
    clips: dict[str, Path], suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError) as caught:
        audio.read(clips[suffix])
    assert caught.value.code == "unsupported"
    assert PIPE in str(caught.value)
    assert "pip install 'audiossl-toolkit[video]'" in str(caught.value)


@needs_ffmpeg
def test_the_pipe_that_the_error_names_works(clips: dict[str, Path]) -> None:
    command = ["ffmpeg", "-v", "error", "-i", clips["m4a"], "-f", "wav", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    expected, _ = audio.read(clips["wav"], 16000)
    assert likeness(audio.read(io.BytesIO(data), 16000)[0], expected) > 0.95


CHANGES = {
    "aac": [("aac", 1, 44100), ("aac", 2, 44100)],
    "ac3": [("ac3", 2, 44100), ("ac3", 6, 44100)],
    "adts": [("aac", 2, 48000), ("aac", 2, 44100)],
}


@needs_ffmpeg
@pytest.mark.parametrize("kind", CHANGES)
def test_rate_and_channels_may_change_on_the_way(kind: str, tmp_path: Path) -> None:
    """As FFmpeg reads it: all of it, in the rate of the beginning."""
    pytest.importorskip("av", reason="the [video] extra is not installed")
    data = b""
    for number, (codec, channels, rate) in enumerate(CHANGES[kind]):
        source = f"sine=f={440 + 220 * number}:r={rate}:d=2"
        form = "adts" if codec == "aac" else codec
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-ac", str(channels)]
        command += ["-c:a", codec, "-f", form, "-"]
        data += subprocess.run(command, check=True, capture_output=True).stdout
    path = tmp_path / "changes"
    path.write_bytes(data)
    wave, rate = audio.read(path)
    assert rate == CHANGES[kind][0][2]
    command = ["ffmpeg", "-v", "error", "-i", path, "-ac", "1", "-f", "f32le", "-"]
    heard = subprocess.run(command, check=True, capture_output=True).stdout
    expected = np.frombuffer(heard, np.float32)
    assert abs(len(wave) - len(expected)) <= 64  # filters' tails
    assert likeness(wave, expected) > 0.95
