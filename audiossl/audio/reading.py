"""Sound in and out: read, stream, write; mono float32 at the rate that is asked for.

Samples come in blocks, so that memory does not grow with the length of a file. Content tells the
format, never the name. What a header claims is checked against what is there, and bounded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import BinaryIO, Literal

import numpy as np
import soxr

from audiossl.audio import video
from audiossl.audio.behind import MISCOUNT_BYTES, after
from audiossl.audio.containers import sniff
from audiossl.audio.formats import AudioInfo, Decoder, Limits, RawFormat
from audiossl.audio.pcm import PcmDecoder
from audiossl.audio.pcm_headers import PCM_CONTAINERS, PcmHeader, read_header
from audiossl.audio.sndfile import SndfileDecoder
from audiossl.audio.sources import Pipe, Readable, open_source, unreadable
from audiossl.audio.windows import Window, windows
from audiossl.audio.writing import write
from audiossl.errors import InputError, UsageError

__all__ = [
    "AudioInfo",
    "AudioStream",
    "Limits",
    "RawFormat",
    "Source",
    "Window",
    "info",
    "read",
    "stream",
    "windows",
    "write",
]

Source = str | os.PathLike[str] | BinaryIO  # "-" is standard input
NanPolicy = Literal["error", "zero"]

DEFAULT_LIMITS = Limits()
BLOCK_SECONDS = 10.0
MAX_BLOCK = 1 << 22  # source samples in a block, whatever its seconds: 16 MiB
# Decoded at a time, of all channels: libsndfile's calls cost, and a pipe may be live.
CHUNK_VALUES = 1 << 18
LIVE_VALUES = 1 << 14
MIN_CHUNK = 1 << 12  # frames
RESAMPLED = 1 << 14  # samples at a time: they stay in the processor's cache
# Beyond it a sample is no sound but a damaged number: its power in a spectrum is Inf in float32.
MAX_MAGNITUDE = 1e15
# A part that begins no later is decoded from the start of the sound: seeking would save little.
SEEK_SECONDS = 10.0
LEAD = 1024  # samples of the lower rate decoded before such a part: soxr's filters see about 100
QUALITY = "HQ"  # soxr: aliases below -140 dB, and as fast as the next lower ones


class AudioStream:
    """Mono blocks of an open sound: iterate once, then close (or use `with`).

    Each block is (samples,) float32 at `rate`. A damaged sound gives all that is good, and then
    raises InputError.
    """

    def __init__(
        self,
        decoder: Decoder,
        file: Readable,
        rate: int | None,
        block_seconds: float,
        nan: NanPolicy,
        limits: Limits,
        start: float = 0.0,
    ) -> None:
        self.info = decoder.info
        self.rate = rate or self.info.rate
        self._decoder = decoder
        self._file = file
        self._zero = nan == "zero"
        self._limits = limits
        self._decoded = 0
        self._block = max(1, min(round(block_seconds * self.info.rate), MAX_BLOCK))
        values = LIVE_VALUES if file.size is None else CHUNK_VALUES
        self._chunk = min(self._block, max(MIN_CHUNK, values // self.info.channels))
        self._resampler = (
            None if self.rate == self.info.rate else _Resampler(self.info.rate, self.rate)
        )
        self._before = round(start * self.rate)  # samples that come before what is asked for
        if start > SEEK_SECONDS:
            self._seek(start)

    def _seek(self, start: float) -> None:
        """Decode from shortly before `start` on, where that gives the same samples.

        It begins where samples of both rates coincide, so the resampler is in the same phase.
        """
        source_rate, rate = self.info.rate, self.rate
        step = source_rate // math.gcd(source_rate, rate)
        wanted = int((start - LEAD / min(source_rate, rate)) * source_rate)
        frame = wanted - wanted % step
        if frame > 0 and self._decoder.seek(frame):
            self._decoded = frame
            self._before -= frame * rate // source_rate

    @property
    def seconds(self) -> float:
        """Where decoding is, in source time from the start of the sound."""
        return self._decoded / self.info.rate

    def __iter__(self) -> Iterator[np.ndarray]:
        parts: list[np.ndarray] = []
        begun = self._decoded
        try:
            for piece in self.pieces():
                parts.append(piece)
                # What comes through a pipe may be live: nothing is held back to fill a block.
                if self._decoded - begun >= self._block or self._file.size is None:
                    yield _joined(parts)
                    parts, begun = [], self._decoded
        except InputError:  # what came before it is given first
            if parts:
                yield _joined(parts)
            raise
        if parts:
            yield _joined(parts)

    def pieces(self) -> Iterator[np.ndarray]:
        """The same samples as by iteration, as they come: in pieces of a fraction of a second."""
        for piece in self._resampled():
            wanted = piece[self._before :]
            self._before -= len(piece) - len(wanted)
            if len(wanted):
                yield wanted

    def _resampled(self) -> Iterator[np.ndarray]:
        resampler = self._resampler
        if resampler is None:
            for mono in self._mono():
                yield mono.copy()  # the decoder uses its memory again
            return
        failure: InputError | None = None
        try:
            for mono in self._mono():
                for start in range(0, len(mono), RESAMPLED):
                    yield from resampler.feed(mono[start : start + RESAMPLED])
        except InputError as error:
            failure = error
        yield from resampler.finish()
        if failure is None and not resampler.given:
            failure = InputError(f"shorter than a sample at {self.rate} Hz", code="empty")
        if failure is not None:
            raise failure

    def _mono(self) -> Iterator[np.ndarray]:
        """Chunks at the source's rate, checked."""
        while len(block := self._read()):
            good, failure = self._checked(block)
            self._decoded += len(good)
            if len(good):
                yield good
            if failure is not None:
                raise failure
            self._limits.check_seconds(self.seconds)
        problem = self._decoder.problem(self._decoded)
        if problem is None and self._decoded == 0:
            problem = InputError("no samples", code="empty")
        if problem is not None:
            raise problem

    def _read(self) -> np.ndarray:
        try:
            return self._decoder.read(self._chunk)
        except OSError as error:
            raise unreadable(error) from error

    def _checked(self, block: np.ndarray) -> tuple[np.ndarray, InputError | None]:
        """(frames, channels) -> its good beginning as mono, and what is wrong behind that."""
        mono = _mixed(block)
        if self._decoder.integer:
            return mono, None
        if mono.min() >= -MAX_MAGNITUDE and mono.max() <= MAX_MAGNITUDE:  # not so with a NaN
            return mono, None
        if self._zero:
            return _mixed(np.where(np.abs(block) <= MAX_MAGNITUDE, block, np.float32(0))), None
        good = int(np.argmin(np.abs(mono) <= MAX_MAGNITUDE))
        at = (self._decoded + good) / self.info.rate
        message = f"a sample at {at:.3f} s is not a finite number: `--nan zero` reads it as 0"
        return mono[:good], InputError(message, code="not-finite")

    def close(self) -> None:
        self._decoder.close()
        self._file.close()

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Resampler:
    """soxr over blocks: as over the whole, and exactly round(n * rate / source) samples."""

    def __init__(self, source_rate: int, rate: int) -> None:
        self._rates = source_rate, rate
        self._soxr = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality=QUALITY)
        self._taken = 0
        self.given = 0

    def feed(self, block: np.ndarray) -> Iterator[np.ndarray]:
        self._taken += len(block)
        return self._give(self._soxr.resample_chunk(block))

    def finish(self) -> Iterator[np.ndarray]:
        """The tail, cut or filled with silence to the exact length."""
        source_rate, rate = self._rates
        exact = (2 * self._taken * rate + source_rate) // (2 * source_rate)
        tail = self._soxr.resample_chunk(np.zeros(0, np.float32), last=True)
        yield from self._give(tail[: max(0, exact - self.given)])
        yield from self._give(np.zeros(exact - self.given, np.float32))

    def _give(self, piece: np.ndarray) -> Iterator[np.ndarray]:
        self.given += len(piece)
        if len(piece):
            yield piece


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _mixed(block: np.ndarray) -> np.ndarray:
    """(frames, channels) -> (frames,), their mean; by channels, 5x faster than numpy's `mean`."""
    if block.shape[1] == 1:
        return np.ascontiguousarray(block[:, 0])
    with np.errstate(over="ignore", invalid="ignore"):
        mono = block[:, 0] + block[:, 1]
        for channel in range(2, block.shape[1]):
            mono += block[:, channel]
        mono *= np.float32(1 / block.shape[1])
    return mono


def stream(
    source: Source,
    rate: int | None = None,
    *,
    block_seconds: float = BLOCK_SECONDS,
    nan: NanPolicy = "error",
    limits: Limits = DEFAULT_LIMITS,
    raw: RawFormat | None = None,
    start: float = 0.0,
) -> AudioStream:
    """Open a sound: a path, "-" for standard input, or a binary file object (which stays open).

    `rate`: in Hz, None for the source's own. `block_seconds`: at most, of source time. `nan`: what
    to do with samples that are no finite numbers, refuse or read as 0. `raw`: how headerless PCM
    lies. `start`: in seconds; the samples from round(start * rate) on, and none where the sound is
    shorter. FLAC and files of plain PCM are not decoded up to there, nor checked.
    Raises InputError here, or while the blocks are read.
    """
    if rate is not None and rate < 1:
        raise UsageError(f"a rate of {rate} Hz")
    if not block_seconds > 0:
        raise UsageError(f"blocks of {block_seconds} s")
    if not 0 <= start < math.inf:
        raise UsageError(f"a start of {start} s")
    if nan not in ("error", "zero"):
        raise UsageError(f"nan={nan!r}: error or zero")
    file = open_source(source)
    try:
        decoder = _pcm(file, raw, "RAW") if raw else _decoder(file)
        limits.check(decoder.info)
        return AudioStream(decoder, file, rate, block_seconds, nan, limits, start)
    except OSError as error:
        file.close()
        raise unreadable(error) from error
    except BaseException:
        file.close()
        raise


def _decoder(file: Readable) -> Decoder:
    container = sniff(file)
    if container in video.DEMUXERS:
        return video.open_video(file, container)
    if container not in PCM_CONTAINERS:
        return SndfileDecoder(file, container)
    header = read_header(container, file)
    if header.raw is None:
        return SndfileDecoder(file, container, _miscounted(file, header))
    return _pcm(file, header.raw, container, header)


def _pcm(
    file: Readable, raw: RawFormat, container: str, header: PcmHeader | None = None
) -> Decoder:
    if isinstance(file, Pipe):
        file.forget()
    if header is None:
        return PcmDecoder(file, raw, container)
    return PcmDecoder(file, raw, container, header.data_bytes, header.chunks)


def _miscounted(file: Readable, header: PcmHeader) -> InputError | None:
    """Compressed samples that a header claims and the file does not have, or has behind them."""
    claimed, start = header.data_bytes, file.tell()
    if claimed is None:
        return None
    if isinstance(file, Pipe):
        file.drain()  # as libsndfile needs it
    there = (file.size or 0) - start
    if claimed - there > MISCOUNT_BYTES:
        message = f"header says {claimed} bytes of samples, {there} are there"
        return InputError(message, code="truncated")
    file.seek(start + min(claimed, there))
    found = after(file, header.chunks, pad=claimed % 2)
    if not found.rest:
        return found.unread
    message = f"header says {claimed} bytes of samples, {there} are there: the rest was not read"
    return InputError(message, code="corrupt")


def read(
    source: Source,
    rate: int | None = None,
    *,
    block_seconds: float = BLOCK_SECONDS,
    nan: NanPolicy = "error",
    limits: Limits = DEFAULT_LIMITS,
    raw: RawFormat | None = None,
) -> tuple[np.ndarray, int]:
    """All of a sound: (samples,) float32, and its rate in Hz. See `stream`."""
    with stream(
        source, rate, block_seconds=block_seconds, nan=nan, limits=limits, raw=raw
    ) as blocks:
        return _joined(list(blocks.pieces())), blocks.rate


def info(
    source: Source,
    *,
    limits: Limits = DEFAULT_LIMITS,
    raw: RawFormat | None = None,
) -> AudioInfo:
    """What the header says. Raises InputError."""
    with stream(source, limits=limits, raw=raw) as opened:
        return opened.info
