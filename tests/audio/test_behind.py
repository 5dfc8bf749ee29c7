"""What lies behind the samples that a header claims, by name and through a pipe."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from malformed import CONTAINERS, sound, wav
from sources import piped

from audiossl.audio import behind
from audiossl.audio import reading as audio
from audiossl.audio.pcm import WRAP
from audiossl.errors import InputError

PCM = ("wav", "rf64", "w64", "aiff", "au", "caf")
# Where the length of the samples stands: from the mark on, and what is added to it.
LENGTHS = {
    "wav": (b"data", 4, "<I", 0),
    "rf64": (b"ds64", 16, "<Q", 0),
    "w64": (b"data\xf3\xac\xd3\x11", 16, "<Q", 24),
    "aiff": (b"SSND", 4, ">I", 8),
    "au": (b".snd", 8, ">I", 0),
    "caf": (b"data", 4, ">q", 4),
}


def claiming(container: str, frames: int) -> tuple[bytes, np.ndarray]:
    """A second of sound whose header claims `frames`, and what libsndfile made of it before."""
    stored = io.BytesIO()
    kind, subtype = CONTAINERS[container]
    soundfile.write(stored, sound(1), 16000, format=kind, subtype=subtype)
    data = bytearray(stored.getvalue())
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    mark, behind_mark, form, more = LENGTHS[container]
    struct.pack_into(form, data, data.index(mark) + behind_mark, 2 * frames + more)
    if container == "aiff":
        struct.pack_into(">I", data, data.index(b"COMM") + 10, frames)
    return bytes(data), whole


def given(source: audio.Source) -> tuple[np.ndarray, InputError | None]:
    """All samples, and the error behind them."""
    parts, error = [np.zeros(0, np.float32)], None
    with audio.stream(source) as stream:
        try:
            parts.extend(stream)
        except InputError as caught:
            error = caught
    return np.concatenate(parts), error


def both(data: bytes) -> tuple[np.ndarray, InputError | None]:
    """What a file object gives, when a pipe gives the same."""
    one, error = given(io.BytesIO(data))
    with piped(data) as path:
        other, same = given(path)
    np.testing.assert_array_equal(one, other)
    assert str(error) == str(same)
    return one, error


@pytest.mark.parametrize("container", PCM)
@pytest.mark.parametrize("frames", [22, 5333, 8000])
def test_a_claim_that_is_too_small_is_not_believed(container: str, frames: int) -> None:
    data, whole = claiming(container, frames)
    wave, error = both(data)
    np.testing.assert_allclose(wave, whole, atol=1e-6)
    assert error is not None
    assert error.code == "corrupt"
    assert f"it says {frames} frames, 16000 were read" in str(error)


@pytest.mark.parametrize("container", PCM)
def test_a_true_claim_is_no_error(container: str) -> None:
    data, whole = claiming(container, 16000)
    wave, error = both(data)
    np.testing.assert_allclose(wave, whole, atol=1e-6)
    assert error is None


def test_zeros_behind_the_samples_are_a_disk_laid_out_before() -> None:
    data = wav(samples=b"\x00\x20" * 1000) + bytes(200_000)
    wave, error = both(data)
    assert (len(wave), error) == (1000, None)


def test_zeros_between_sound_and_sound_are_silence() -> None:
    data = wav(samples=b"\x00\x20" * 1000) + bytes(200_000) + b"\x00\x20" * 500
    wave, error = both(data)
    assert error is not None
    expected = np.r_[np.full(1000, 0.25), np.zeros(100_000), np.full(500, 0.25)]
    np.testing.assert_array_equal(wave, expected)


def test_a_frame_that_the_claim_cuts_is_put_together() -> None:
    samples = np.arange(3000, dtype="<i2")
    data = bytearray(wav(channels=2, samples=samples.tobytes()))
    struct.pack_into("<I", data, 40, 102)  # 25 frames and a half
    wave, error = both(bytes(data))
    np.testing.assert_allclose(wave, samples.reshape(-1, 2).mean(axis=1) / 32768, atol=1e-7)
    assert error is not None


@pytest.mark.parametrize("tag", [b"TAG" + bytes(125), b"ID3\4\0\0\0\0\0\x7f" + b"x" * 127])
def test_tags_are_no_samples(tag: bytes) -> None:
    wave, error = both(wav(samples=b"\x00\x20" * 1000) + tag)
    assert (len(wave), error) == (1000, None)


@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_a_chunk_behind_an_odd_length(pad: bytes) -> None:
    """Some writers leave the byte out that fills up to an even length."""
    data = wav(samples=b"\xc0" * 1001, bits=8) + pad + b"LIST\x04\0\0\0INFO"
    wave, error = both(data)
    assert (len(wave), error) == (1001, None)


def test_a_chunk_that_is_cut_is_no_samples() -> None:
    data = wav(samples=b"\x00\x20" * 1000) + b"LIST\xff\xff\0\0INFO" + b"x" * 500
    wave, error = both(data)
    assert (len(wave), error) == (1000, None)


@pytest.mark.parametrize("between", [b"", b"LIST\x04\0\0\0INFO"])
def test_one_file_behind_another_is_said(between: bytes) -> None:
    one = wav(samples=b"\x00\x20" * 1000)
    wave, error = both(one + between + one)
    assert len(wave) == 1000
    assert error is not None
    assert "another sound follows" in str(error)


@pytest.mark.parametrize("container", ["wav", "w64"])
def test_compressed_samples_behind_the_claim_are_said(container: str) -> None:
    stored = io.BytesIO()
    kind, _ = CONTAINERS[container]
    soundfile.write(stored, sound(1), 16000, format=kind, subtype="IMA_ADPCM")
    data = bytearray(stored.getvalue())
    mark, behind_mark, form, more = LENGTHS[container]
    struct.pack_into(form, data, data.index(mark) + behind_mark, 2048 + more)
    _, error = given(io.BytesIO(data))
    assert error is not None
    assert given(io.BytesIO(stored.getvalue()))[1] is None


def sparse(path: Path, frames: int, tail: bytes = b"") -> None:
    """A WAV of 16 bit whose length lacks all that does not fit into 32 bits."""
    header = bytearray(wav(samples=b""))
    struct.pack_into("<I", header, 40, 2 * frames % WRAP)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * frames)
        file.seek(0, io.SEEK_END)
        file.write(tail)


@pytest.mark.parametrize("tail", [b"", b"LIST\x04\0\0\0INFO"])
@pytest.mark.parametrize("times", [1, 3])
def test_lengths_beyond_4_gib_get_their_upper_bits_back(
    times: int, tail: bytes, tmp_path: Path
) -> None:
    frames = times * WRAP // 2 + 12_000
    sparse(tmp_path / "long.wav", frames, tail)
    assert audio.info(tmp_path / "long.wav").frames == frames


def test_what_a_chunk_is() -> None:
    assert behind.WAV.body(b"abcd\x04\0\0\0", 12) == 4
    assert behind.WAV.body(b"abcd\x05\0\0\0", 12) is None  # ends behind the file
    assert behind.WAV.body(b"abcd\x05\0\0\0", None) == 5  # a pipe's end is not known
    assert behind.WAV.body(b"ab\x01d\x04\0\0\0", 12) is None
    assert behind.AIFF.body(b"abcd\0\0\0\x04", 12) == 4
    assert behind.CAF.body(b"abcd\0\0\0", 12) is None  # cut within its header
