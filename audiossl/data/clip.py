"""Open, measure and read the sound of one row of a manifest."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from audiossl.audio import reading as audio
from audiossl.data.rows import Row
from audiossl.data.tar_index import Slice
from audiossl.errors import InputError

BUFFER = 1 << 16  # bytes read at a time of a clip within another file
MIN_BLOCK = 1.0  # seconds decoded at a time
HELD_SECONDS = 60.0  # longest row that RowReader holds in memory


@contextlib.contextmanager
def open_clip(row: Row) -> Iterator[audio.Source]:
    """The source from which `audio.reading` reads a row: its file, or its part of a larger file.

    Raises InputError if the file cannot be opened.
    """
    if row.member is None:
        yield row.path
        return
    try:
        part = io.BufferedReader(Slice(row.path, row.member.offset, row.member.size), BUFFER)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error
    with part:
        yield part


def clip_seconds(row: Row) -> float:
    """Length of a clip from its row or its file's header; if neither says, from decoding it."""
    start = row.start or 0.0
    if row.end is not None:
        return row.end - start
    with open_clip(row) as source:
        seconds = audio.info(source).seconds
    if seconds is None:
        with open_clip(row) as source, audio.stream(source) as blocks:
            for _ in blocks:
                pass
            seconds = blocks.seconds
    return max(0.0, seconds - start)


def clip_blocks(row: Row, rate: int) -> Iterator[np.ndarray]:
    """The sound of a row, block by block; the file is decoded no further than the row's end.

    row: the clip.
    rate: Hz.

    Yields (samples,) float32. Raises InputError, also if the row holds no sample.
    """
    start = row.start or 0.0
    stop = None if row.end is None else round(row.end * rate) - round(start * rate)
    block = audio.BLOCK_SECONDS if row.end is None else max(MIN_BLOCK, row.end - start)
    block = min(block, audio.BLOCK_SECONDS)  # of source time
    seen = 0
    with (
        open_clip(row) as source,
        audio.stream(source, rate, block_seconds=block, start=start) as blocks,
    ):
        for samples in blocks:
            part = samples if stop is None else samples[: stop - seen]
            if len(part):
                yield part
            seen += len(part)
            if seen == stop:
                break
    if not seen:
        raise _nothing()


def _nothing() -> InputError:
    return InputError("no sample in this part of the file", code="empty")


def runs(rows: Sequence[Row]) -> Iterator[list[int]]:
    """The positions of `rows` in groups: neighbouring rows of one file are together."""
    for _, places in groupby(range(len(rows)), key=lambda place: rows[place].name):
        yield list(places)


def read_clip(row: Row, rate: int) -> np.ndarray:
    """(samples,) float32 of a row at `rate`. Raises InputError as `clip_blocks` does."""
    return np.concatenate(list(clip_blocks(row, rate)))


def fill(wave: np.ndarray, samples: int, short: str) -> np.ndarray:
    """A wave of exactly `samples`: cut, repeated or followed by zeros.

    wave: (samples,).
    samples: length of the result.
    short: "repeat" fills a short wave with itself, anything else with zeros.
    """
    if len(wave) >= samples:
        return wave[:samples]
    if short == "repeat" and len(wave):
        return np.tile(wave, -(-samples // len(wave)))[:samples]
    return np.pad(wave, (0, samples - len(wave)))


class Forward:
    """A clip that is read once, from its start to its end, with bounded memory."""

    def __init__(self, row: Row, rate: int) -> None:
        self._blocks = clip_blocks(row, rate)
        self._held = np.zeros(0, np.float32)
        self.begin = 0  # the first sample that is still in memory

    def part(self, start: int, samples: int) -> np.ndarray:
        """The samples from `start` on: (samples,) float32, or fewer at the clip's end.

        start: number of the first sample, not before `begin`.
        samples: how many.

        Raises InputError.
        """
        while (end := self.begin + len(self._held)) < start + samples:
            if (block := next(self._blocks, None)) is None:
                break
            kept = self._held[max(0, start - self.begin) :]
            self.begin = end - len(kept)
            self._held = np.concatenate([kept, block])
        at = start - self.begin
        return self._held[at : at + samples]


class RowReader:
    """Reads rows one after another, in one thread.

    rate: Hz.

    FLAC and plain PCM are read from the second where a row begins. Other formats can only be
    decoded from their start: their file stays open, and rows that come in the order of their starts
    (they may overlap) decode it once.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._name = ""
        self._seeks: bool | None = None  # None: not known yet
        self._forward: Forward | None = None

    def blocks(self, row: Row) -> Iterator[np.ndarray]:
        """(samples,) float32 at a time. Raises InputError as `clip_blocks` does."""
        if row.name != self._name:
            self._name, self._seeks, self._forward = row.name, None, None
        if row.end is None or self._is_direct(row, row.end):
            yield from clip_blocks(row, self.rate)
        else:
            yield self._onward(row, row.end)

    def read(self, row: Row) -> np.ndarray:
        """(samples,) float32. Raises InputError."""
        return np.concatenate(list(self.blocks(row)))

    def _is_direct(self, row: Row, end: float) -> bool:
        """Whether opening the file for this row alone costs no more than the row itself."""
        start = row.start or 0.0
        if start <= audio.SEEK_SECONDS or end - start > HELD_SECONDS:
            return True
        if self._seeks is None:
            with open_clip(row) as source, audio.stream(source, self.rate, start=start) as blocks:
                self._seeks = blocks.seconds > 0
        return self._seeks

    def _onward(self, row: Row, end: float) -> np.ndarray:
        first = round((row.start or 0.0) * self.rate)
        forward, self._forward = self._forward, None  # after an error the file is opened again
        if forward is None or forward.begin > first:
            forward = Forward(replace(row, start=None, end=None), self.rate)
        wave = forward.part(first, round(end * self.rate) - first)
        self._forward = forward
        if not len(wave):
            raise _nothing()
        return wave
