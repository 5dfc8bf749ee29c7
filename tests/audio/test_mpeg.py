"""Frames of MPEG audio, and a cut that only the last of them shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiossl.audio import reading as audio
from audiossl.audio.mpeg import frame_bytes
from audiossl.errors import InputError

CHANNELS = {1: (22050, 0.3), 2: (44100, 0.9)}  # MPEG-2 and MPEG-1; rate, quality


@pytest.fixture(params=CHANNELS)
def frames(request: pytest.FixtureRequest, tmp_path: Path) -> list[bytes]:
    """The frames of a variable bitrate MP3 without its Xing header."""
    rate, level = CHANNELS[request.param]
    path, random = tmp_path / "whole.mp3", np.random.default_rng(0)
    wave = (
        0.1
        * random.standard_normal((3 * rate, request.param))
        * np.linspace(0, 1, 3 * rate)[:, None]
    )
    soundfile.write(
        path, wave, rate, format="MP3", compression_level=level, bitrate_mode="VARIABLE"
    )
    data, found = path.read_bytes(), []
    while data:
        length = frame_bytes(data[:4])
        assert length, "frames follow each other to the end of the file"
        found.append(data[:length])
        data = data[length:]
    assert b"Xing" in found[0] or b"Info" in found[0]
    return found[1:]


def test_lengths_by_the_standard() -> None:
    assert frame_bytes(b"\xff\xfb\x90\x64") == 417  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz
    assert frame_bytes(b"\xff\xfb\x92\x64") == 418  # padded
    assert frame_bytes(b"\xff\xf3\x84\xc4") == 192  # MPEG-2 layer III, 64 kbit/s, 24 kHz
    assert frame_bytes(b"\xff\xfd\xe4\x00") == 1152  # MPEG-1 layer II, 384 kbit/s, 48 kHz
    assert frame_bytes(b"\xff\xff\xe8\x00") == 672  # MPEG-1 layer I, 448 kbit/s, 32 kHz
    for none in (
        b"\xff\xfb\x00\x64",
        b"\xff\xfb\xf0\x64",
        b"\xff\xe9\x90\x64",
        b"\xff\xfb",
        b"abcd",
    ):
        assert frame_bytes(none) == 0


@pytest.mark.parametrize("missing", [1, 50, -5])
def test_a_cut_in_the_last_frame_is_noticed(
    frames: list[bytes], missing: int, tmp_path: Path
) -> None:
    data, path = b"".join(frames), tmp_path / "cut.mp3"
    path.write_bytes(data[:-missing] if missing > 0 else data[: -len(frames[-1]) - missing])
    with pytest.raises(InputError, match="the last frame is cut") as raised:
        audio.read(path)
    assert raised.value.code == "truncated"
    whole = tmp_path / "whole.mp3"
    whole.write_bytes(data)
    assert audio.read(whole)[0].size


@pytest.mark.parametrize("behind", [b"", b"TAG" + bytes(125), bytes(300), b"APETAGEX" + bytes(24)])
def test_a_whole_file_stays_whole(frames: list[bytes], behind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "whole.mp3"
    path.write_bytes(b"".join(frames) + behind)
    assert audio.read(path)[0].size
