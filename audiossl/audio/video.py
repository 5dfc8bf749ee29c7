"""Video files and the audio formats that libsndfile does not have, through FFmpeg (PyAV).

PyAV is the [video] extra. The demuxer is named by what the content is: FFmpeg is not left to guess,
and formats that point at other files or the network are never asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from audiossl.audio.formats import AudioInfo, Decoder, truncated, unsupported
from audiossl.audio.sources import Pipe, Readable
from audiossl.errors import InputError

DEMUXERS = {
    "MP4": "mov",
    "MATROSKA": "matroska",
    "ADTS": "aac",
    "ASF": "asf",
    "AVI": "avi",
    "FLV": "flv",
    "MPEG-PS": "mpeg",
    "MPEG-TS": "mpegts",
    "AMR": "amr",
    "AC3": "ac3",
    "WAVPACK": "wv",
    "APE": "ape",
    "TTA": "tta",
    "OGG-FLAC": "ogg",
    "OGG-SPEEX": "ogg",
    "OGG-VIDEO": "ogg",
}

GUESSED = ("ADTS", "AC3")  # no header says how long they are: FFmpeg guesses by the bitrate

# A container's length may be that of the picture, or rounded: only what lacks more is cut.
SLACK_SECONDS = 0.5
SLACK_SHARE = 0.01


def open_video(file: Readable, container: str) -> Decoder:
    """Decode the first audio track. Raises InputError; without PyAV it says what else works."""
    try:
        import av
    except ImportError as error:
        raise unsupported(f"{container} is read by FFmpeg", extra=True) from error
    if isinstance(file, Pipe):
        file.drain()  # an index at the end is as usual as one at the start
    return _AvDecoder(av, file, container)


class _AvDecoder:
    integer = False

    def __init__(self, av: Any, file: Readable, container: str) -> None:
        self._av = av
        self._failure: InputError | None = None
        file.seek(0)
        try:
            self._container = av.open(file, format=DEMUXERS[container], metadata_errors="ignore")
        except (av.error.FFmpegError, ValueError) as error:
            raise InputError(
                f"the {container} data is damaged: {_words(error)}", "corrupt"
            ) from error
        try:
            self.info = self._begin(container)
        except BaseException:
            self._container.close()
            raise

    def _begin(self, container: str) -> AudioInfo:
        """Decode the first frame: headers are wrong about the rate where HE-AAC doubles it."""
        if not self._container.streams.audio:
            raise InputError("no audio track", code="unsupported")
        track = self._container.streams.audio[0]
        if track.codec_context is None:
            raise InputError("an audio track with an unknown encoding", code="unsupported")
        frames = self._frames(track)
        first = next(frames, None)
        if first is None:
            raise self._failure or InputError("no samples", code="empty")
        self._blocks = self._converted(chain([first], frames))
        self._rest = np.zeros((0, len(first.layout.channels)), np.float32)
        seconds = track.duration and float(track.duration * track.time_base)
        known = seconds and seconds > 0 and container not in GUESSED
        claimed = round(seconds * first.sample_rate) if known else None
        name = track.codec_context.name.upper()
        return AudioInfo(container, name, first.sample_rate, len(first.layout.channels), claimed)

    def _frames(self, track: Any) -> Iterator[Any]:
        try:
            yield from self._container.decode(track)
        except self._av.error.FFmpegError as error:
            if not isinstance(error, self._av.error.EOFError):
                self._failure = InputError(f"damaged: {_words(error)}", code="corrupt")

    def _converted(self, frames: Iterator[Any]) -> Iterator[np.ndarray]:
        """(n, channels) float32 in the first frame's layout and rate.

        A resampler takes frames of one kind only: each change begins a new one.
        """
        first = next(frames)
        channels = len(first.layout.channels)
        resampler, kind = self._resampler(first), _kind(first)
        for frame in chain([first], frames):
            done = []
            if _kind(frame) != kind:
                done += resampler.resample(None)
                resampler, kind = self._resampler(first), _kind(frame)
            frame.pts = None  # a resampler refuses times that jump
            done += resampler.resample(frame)
            for piece in done:
                yield piece.to_ndarray().reshape(-1, channels)
        for piece in resampler.resample(None):
            yield piece.to_ndarray().reshape(-1, channels)

    def _resampler(self, first: Any) -> Any:
        return self._av.AudioResampler("flt", first.layout, first.sample_rate)

    def seek(self, frame: int) -> bool:
        return False  # FFmpeg goes to a packet, whose place in time is rounded

    def read(self, frames: int) -> np.ndarray:
        parts, held = [self._rest], len(self._rest)
        while held < frames and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            held += len(block)
        joined = np.concatenate(parts)
        self._rest = joined[frames:].copy()
        return joined[:frames]

    def problem(self, decoded: int) -> InputError | None:
        if self._failure is not None:
            return self._failure
        claimed = self.info.frames
        if claimed is None:
            return None
        slack = max(SLACK_SECONDS * self.info.rate, SLACK_SHARE * claimed)
        return truncated(claimed, decoded) if claimed - decoded > slack else None

    def close(self) -> None:
        self._container.close()


def _kind(frame: Any) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
