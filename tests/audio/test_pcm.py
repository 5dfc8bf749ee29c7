"""pcm.py and pcm_headers.py against libsndfile, which reads and writes the same."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile
from malformed import sound, wav

from audiossl.audio import reading as audio
from audiossl.audio.formats import SAMPLE_BYTES
from audiossl.audio.reading import RawFormat
from audiossl.errors import InputError, UsageError

NAMES = {
    "u8": ("PCM_U8", None),
    "s8": ("PCM_S8", None),
    "s16le": ("PCM_16", "LITTLE"),
    "s16be": ("PCM_16", "BIG"),
    "s24le": ("PCM_24", "LITTLE"),
    "s24be": ("PCM_24", "BIG"),
    "s32le": ("PCM_32", "LITTLE"),
    "s32be": ("PCM_32", "BIG"),
    "f32le": ("FLOAT", "LITTLE"),
    "f32be": ("FLOAT", "BIG"),
    "f64le": ("DOUBLE", "LITTLE"),
    "f64be": ("DOUBLE", "BIG"),
    "mulaw": ("ULAW", None),
    "alaw": ("ALAW", None),
}


@pytest.mark.parametrize("encoding", NAMES)
def test_raw_is_what_libsndfile_decodes(encoding: str) -> None:
    subtype, endian = NAMES[encoding]
    layout = {"format": "RAW", "subtype": subtype, "endian": endian}
    wave = np.stack([sound(1), sound(2)], axis=1)
    stored = io.BytesIO()
    soundfile.write(stored, wave, 16000, **layout)
    data = stored.getvalue()
    assert len(data) == 2 * 16000 * SAMPLE_BYTES[encoding]
    expected, _ = soundfile.read(
        io.BytesIO(data), samplerate=16000, channels=2, dtype="float32", **layout
    )
    got, rate = audio.read(io.BytesIO(data), raw=RawFormat(16000, 2, encoding))
    assert rate == 16000
    np.testing.assert_allclose(got, expected.mean(axis=1), atol=1e-7)
    info = audio.info(io.BytesIO(data), raw=RawFormat(16000, 2, encoding))
    assert (info.format, info.subtype, info.channels, info.frames) == ("RAW", subtype, 2, None)


@pytest.mark.parametrize("encoding", ["mulaw", "alaw", "u8", "s8"])
def test_all_codes_of_one_byte(encoding: str) -> None:
    data = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(data), samplerate=8000, channels=1, format="RAW", subtype=NAMES[encoding][0]
    )
    got, _ = audio.read(io.BytesIO(data), raw=RawFormat(8000, 1, encoding))
    np.testing.assert_array_equal(got, expected.astype(np.float32))


@pytest.mark.parametrize("encoding", NAMES)
def test_the_last_incomplete_frame_is_left_out(encoding: str) -> None:
    raw = RawFormat(8000, 3, encoding)
    for extra in range(1, raw.frame_bytes):
        data = bytes(raw.frame_bytes * 5 + extra)
        assert len(audio.read(io.BytesIO(data), raw=raw)[0]) == 5


def test_a_pipe_that_gives_odd_pieces() -> None:
    """Frames that a read cuts in two are put together again."""

    class Dribble(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.data = data

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            piece, self.data = self.data[:7], self.data[7:]
            return piece

    wave = np.arange(-3000, 3000, dtype=">i2")
    raw = RawFormat(8000, 2, "s16be")
    got, _ = audio.read(Dribble(wave.tobytes()), raw=raw)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, wave.reshape(-1, 2).mean(axis=1) / 32768, atol=1e-7)


def test_nothing_is_empty() -> None:
    with pytest.raises(InputError) as caught:
        audio.read(io.BytesIO(b"\0"), raw=RawFormat(8000))
    assert caught.value.code == "empty"


def test_raw_formats_that_cannot_be() -> None:
    for rate, channels, encoding in ((0, 1, "u8"), (8000, 0, "u8"), (8000, 1, "s12")):
        with pytest.raises(UsageError):
            RawFormat(rate, channels, encoding)


SUBTYPES = sorted({subtype for subtype, _ in NAMES.values()})
CONTAINED = [
    (container, subtype, endian)
    for container in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")
    for subtype in SUBTYPES
    for endian in ("FILE", "LITTLE", "BIG")
    if soundfile.check_format(container, subtype, endian)
]


@pytest.mark.parametrize(("container", "subtype", "endian"), CONTAINED)
def test_headers_that_libsndfile_writes(container: str, subtype: str, endian: str) -> None:
    wave = np.stack([sound(1), sound(2), sound(3)], axis=1)
    stored = io.BytesIO()
    soundfile.write(stored, wave, 22050, format=container, subtype=subtype, endian=endian)
    expected, _ = soundfile.read(io.BytesIO(stored.getvalue()), dtype="float32")
    info = audio.info(io.BytesIO(stored.getvalue()))
    named = {"WAVEX": "WAV"}.get(container, container)
    assert (info.format, info.subtype, info.rate) == (named, subtype, 22050)
    assert (info.channels, info.frames) == (3, 16000)
    got, _ = audio.read(io.BytesIO(stored.getvalue()))
    np.testing.assert_allclose(got, expected.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "IMA_ADPCM"),
        ("WAV", "GSM610"),
        ("W64", "MS_ADPCM"),
        ("CAF", "ALAC_16"),
        ("AIFF", "IMA_ADPCM"),
    ],
)
def test_compressed_samples_go_to_libsndfile(container: str, subtype: str) -> None:
    stored = io.BytesIO()
    soundfile.write(stored, sound(1), 16000, format=container, subtype=subtype)
    data = stored.getvalue()
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_allclose(audio.read(io.BytesIO(data))[0], expected, atol=1e-6)
    if container != "CAF":
        with pytest.raises(InputError):
            audio.read(io.BytesIO(data[: len(data) // 2]))


def test_chunks_before_the_samples() -> None:
    data = wav(samples=b"\x00\x20" * 100)
    odd = b"bext" + struct.pack("<I", 5) + b"abcde\0"
    assert len(audio.read(io.BytesIO(data[:12] + odd + data[12:]))[0]) == 100


def test_chains_of_chunks_end() -> None:
    endless = b"RIFF\0\0\0\0WAVE" + bytes(8 * 20000)
    with pytest.raises(InputError, match="no samples' chunk"):
        audio.read(io.BytesIO(endless))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 96000, 384000])
def test_rates_of_aiff_are_80_bit_floats(rate: int) -> None:
    stored = io.BytesIO()
    soundfile.write(stored, sound(1)[:50], rate, format="AIFF")
    assert audio.info(io.BytesIO(stored.getvalue())).rate == rate
