"""Plain PCM, with or without a header: bytes in, float32 out, as they come.

libsndfile reads such files too, but not from every pipe (RF64, CAF), not beyond 4 GiB where a WAV
header has no room for the length, and it takes the bytes behind the samples for samples (W64).
"""

from __future__ import annotations

import numpy as np

from audiossl.audio.behind import MISCOUNT_BYTES, Chunks, after
from audiossl.audio.formats import SAMPLE_BYTES, AudioInfo, RawFormat, truncated, understated
from audiossl.audio.sources import Readable
from audiossl.errors import InputError

LIVE_SECONDS = 0.05  # of a slow pipe that are waited for before samples are given
WRAP = 1 << 32  # bytes: a length beyond has lost its upper bits in a 32-bit field


class PcmDecoder:
    """Interleaved samples from `file`, which stands at the first of them.

    A claim that is too small is not believed: samples go on to the end of the file, and `problem`
    says so. An incomplete last frame is left out. Whoever opened `file` closes it.

    raw: how the samples lie
    container: its name, for `info`
    data_bytes: how many bytes of samples the header claims, None to read to the end
    chunks: how chunks behind the samples look, None in a format without any
    """

    def __init__(
        self,
        file: Readable,
        raw: RawFormat,
        container: str,
        data_bytes: int | None = None,
        chunks: Chunks | None = None,
    ) -> None:
        frames = None if data_bytes is None else data_bytes // raw.frame_bytes
        self.info = AudioInfo(container, raw.subtype, raw.rate, raw.channels, frames)
        self.integer = not raw.encoding.startswith("f")
        self._file = file
        self._raw = raw
        self._chunks = chunks
        self._claimed = data_bytes or 0
        self._left = None if frames is None else frames * raw.frame_bytes
        self._begin = file.tell()
        self._zeros = 0  # bytes 0 to give before `_rest`
        self._rest = b""
        self._looked = False  # behind what is claimed
        self._unread: InputError | None = None

    def seek(self, frame: int) -> bool:
        at = self._begin + frame * self._raw.frame_bytes
        claimed = self.info.frames
        if self._file.size is None or at >= self._file.size:
            return False
        if claimed is not None:
            if frame >= claimed:
                return False
            self._left = (claimed - frame) * self._raw.frame_bytes
        self._file.seek(at)
        return True

    def read(self, frames: int) -> np.ndarray:
        if self._left == 0 and not self._looked:
            self._look_behind()
        size = self._raw.frame_bytes
        wanted = frames * size if self._left is None else min(frames * size, self._left)
        enough = min(wanted, max(1, round(self.info.rate * LIVE_SECONDS)) * size)
        buffer = bytearray(wanted)
        view = memoryview(buffer)
        filled = self._held(view)
        while filled < enough and (count := self._file.readinto(view[filled:])):
            filled += count
        whole = filled - filled % size
        self._rest = bytes(view[whole:filled]) + self._rest
        if self._left is not None:
            self._left -= whole
        return decode(view[:whole], self._raw.encoding).reshape(-1, self._raw.channels)

    def _held(self, view: memoryview) -> int:
        """Fill `view` with what has been read already."""
        zeros = min(self._zeros, len(view))
        self._zeros -= zeros
        held = self._rest[: len(view) - zeros]
        self._rest = self._rest[len(held) :]
        view[zeros : zeros + len(held)] = held
        return zeros + len(held)

    def _look_behind(self) -> None:
        """At the end of what is claimed: go on where samples follow."""
        self._looked = True
        pad = -self._claimed % self._chunks.align if self._chunks else 0
        found = after(self._file, self._chunks, self._claimed % self._raw.frame_bytes, pad)
        self._unread = found.unread
        if found.rest:
            self._zeros, self._rest, self._left = found.zeros, found.rest, None

    def problem(self, decoded: int) -> InputError | None:
        claimed = self.info.frames
        if claimed is None or self._unread is not None:
            return self._unread
        size = self._raw.frame_bytes
        if (claimed - decoded) * size > MISCOUNT_BYTES:
            return truncated(claimed, decoded)
        if self._left is None and (decoded * size - self._claimed) % WRAP >= size:
            return understated(claimed, decoded)
        return None

    def close(self) -> None:
        self._rest = b""


def decode(data: bytes | memoryview, encoding: str) -> np.ndarray:
    """(values,) float32 in [-1, 1) of whole samples; floating point is taken as it is."""
    if encoding in ("mulaw", "alaw"):
        return _COMPANDING[encoding][np.frombuffer(data, np.uint8)]
    if encoding == "u8":
        return np.frombuffer(data, np.uint8).astype(np.float32) * 2**-7 - 1
    order = ">" if encoding.endswith("be") else "<"
    size = SAMPLE_BYTES[encoding]
    if encoding.startswith("f"):
        # A double beyond float32 becomes Inf, and is then refused as such.
        with np.errstate(over="ignore"):
            return np.frombuffer(data, f"{order}f{size}").astype(np.float32)
    values = _widened(data, order) if size == 3 else np.frombuffer(data, f"{order}i{size}")
    scaled = values.astype(np.float32)
    scaled *= 2.0 ** (1 - 8 * values.itemsize)
    return scaled


def _widened(data: bytes | memoryview, order: str) -> np.ndarray:
    """24-bit integers as the upper bytes of 32-bit ones."""
    narrow = np.frombuffer(data, np.uint8).reshape(-1, 3)
    wide = np.zeros((len(narrow), 4), np.uint8)
    wide[:, 1:] = narrow if order == "<" else narrow[:, ::-1]
    return wide.reshape(-1).view("<i4")


def _mulaw() -> np.ndarray:
    """ITU-T G.711, mu-law: 256 codes -> (256,) float32."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    exponent, mantissa = code >> 4 & 7, code & 15
    magnitude = ((mantissa * 2 + 33) << exponent) - 33  # 14 bits
    return (np.where(code & 0x80, -magnitude, magnitude) / 2**13).astype(np.float32)


def _alaw() -> np.ndarray:
    """ITU-T G.711, A-law: 256 codes -> (256,) float32."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent, mantissa = code >> 4 & 7, code & 15
    magnitude = np.where(
        exponent == 0, mantissa * 2 + 1, (mantissa * 2 + 33) << np.maximum(exponent - 1, 0)
    )  # 13 bits
    return (np.where(code & 0x80, magnitude, -magnitude) / 2**12).astype(np.float32)


_COMPANDING = {"mulaw": _mulaw(), "alaw": _alaw()}
