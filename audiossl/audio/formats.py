"""What is known of a sound besides its samples: its format, how raw PCM lies, what is believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from audiossl.errors import InputError, UsageError

FFMPEG_PIPE = "`ffmpeg -v error -i FILE -f wav - | audiossl tag -`"

SAMPLE_BYTES = {
    "u8": 1,
    "s8": 1,
    "s16le": 2,
    "s16be": 2,
    "s24le": 3,
    "s24be": 3,
    "s32le": 4,
    "s32be": 4,
    "f32le": 4,
    "f32be": 4,
    "f64le": 8,
    "f64be": 8,
    "mulaw": 1,
    "alaw": 1,
}

_SUBTYPES = {
    "u8": "PCM_U8",
    "s8": "PCM_S8",
    "s16": "PCM_16",
    "s24": "PCM_24",
    "s32": "PCM_32",
    "f32": "FLOAT",
    "f64": "DOUBLE",
    "mulaw": "ULAW",
    "alaw": "ALAW",
}

# arecord's names that are not ours with capitals and underscores. Its S24_LE is not our s24le: it
# fills four bytes, and is refused.
_ALSA = {
    "S24_3LE": "s24le",
    "S24_3BE": "s24be",
    "S24_LE": "S24_LE",
    "S24_BE": "S24_BE",
    "FLOAT_LE": "f32le",
    "FLOAT_BE": "f32be",
    "FLOAT64_LE": "f64le",
    "FLOAT64_BE": "f64be",
    "MU_LAW": "mulaw",
    "A_LAW": "alaw",
}


@dataclass(frozen=True)
class RawFormat:
    """How headerless PCM lies: `rate` in Hz, interleaved `channels`, `encoding` of one sample.

    An encoding may be spelled as ALSA does: "S16_LE". Raises UsageError.
    """

    rate: int
    channels: int = 1
    encoding: str = "s16le"

    def __post_init__(self) -> None:
        encoding = _ALSA.get(self.encoding.upper(), self.encoding.lower().replace("_", ""))
        if encoding not in SAMPLE_BYTES:
            known = ", ".join(SAMPLE_BYTES)
            raise UsageError(f"unknown encoding {self.encoding!r}: one of {known}")
        object.__setattr__(self, "encoding", encoding)
        if self.rate < 1 or self.channels < 1:
            raise UsageError(f"raw audio of {self.rate} Hz and {self.channels} channels")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return SAMPLE_BYTES[self.encoding] * self.channels

    @property
    def subtype(self) -> str:
        """libsndfile's name of the encoding."""
        return _SUBTYPES[self.encoding.removesuffix("le").removesuffix("be")]


@dataclass(frozen=True)
class AudioInfo:
    """What a header says, by libsndfile's names ("WAV", "PCM_16"); `rate` in Hz.

    `frames` and `seconds` are claims, in source time; None where the header makes none (a stream).
    """

    format: str
    subtype: str
    rate: int
    channels: int
    frames: int | None

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None else self.frames / self.rate


@dataclass(frozen=True)
class Limits:
    """What is believed of a header, since a wrong one can ask for any amount of memory or work.

    Rates in Hz: the upper bound is a bat detector's, and resampling from 1 Hz would blow one sample
    up to thousands. `max_seconds`: None for any length (memory does not grow with it).
    """

    min_rate: int = 100
    max_rate: int = 1_536_000
    max_channels: int = 64
    max_seconds: float | None = None

    def check(self, info: AudioInfo) -> None:
        """Raise InputError where `info` goes beyond."""
        if info.rate > self.max_rate:
            raise _beyond(f"{info.rate} Hz", f"{self.max_rate} Hz", "--max-rate")
        if info.rate < self.min_rate:
            raise InputError(
                f"the header says {info.rate} Hz; below {self.min_rate} Hz needs --min-rate",
                code="limits",
            )
        if info.channels > self.max_channels:
            raise _beyond(f"{info.channels} channels", f"{self.max_channels}", "--max-channels")
        if info.channels < 1:
            raise InputError("the header says 0 channels", code="corrupt")
        if info.seconds is not None:
            self.check_seconds(info.seconds)

    def check_seconds(self, seconds: float) -> None:
        """Raise InputError where a sound is longer than is allowed."""
        if self.max_seconds is not None and seconds > self.max_seconds:
            limit = f"{self.max_seconds:g}"
            raise InputError(
                f"longer than the {limit} s of --max-duration: raise it to read this", code="limits"
            )


def _beyond(claim: str, limit: str, option: str) -> InputError:
    return InputError(f"the header says {claim}; beyond {limit} needs {option}", code="limits")


class Decoder(Protocol):
    """Samples of one open sound, from its start to its end."""

    info: AudioInfo
    integer: bool  # samples come from whole numbers: none can be NaN or Inf

    def read(self, frames: int) -> np.ndarray:
        """The next samples: (n, channels) float32, 0 < n <= frames; n == 0 at the end.

        The array may be used for the next ones again.
        """
        ...

    def seek(self, frame: int) -> bool:
        """Before anything is read: go to a frame.

        False, and still at the start, where the samples from there on would not be exactly those
        that decoding from the start gives.
        """
        ...

    def problem(self, decoded: int) -> InputError | None:
        """What is wrong with the sound, known at its end after `decoded` frames."""
        ...

    def close(self) -> None: ...


def unsupported(what: str, extra: bool = False) -> InputError:
    """The error for content that cannot be decoded here, with the pipe that can.

    `extra`: the [video] extra would open it too.
    """
    message = f"{what}: {FFMPEG_PIPE} reads it"
    if extra:
        message += ", or pip install 'audiossl-toolkit[video]' to open it directly"
    return InputError(message, code="unsupported")


def truncated(claimed: int, decoded: int) -> InputError:
    return InputError(f"header says {claimed} frames, {decoded} decoded", code="truncated")


def understated(claimed: int, decoded: int) -> InputError:
    """The error for a header that claims too little, when all that is there has been given."""
    return InputError(
        f"the header is wrong: it says {claimed} frames, {decoded} were read to the file's end",
        code="corrupt",
    )
