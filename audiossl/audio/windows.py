"""Cut a stream of blocks into windows with exact times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from audiossl.errors import InputError, UsageError

MAX_DENOMINATOR = 1_000_000  # of seconds: a hop is taken as the nearest such fraction


@dataclass(frozen=True)
class Window:
    """A piece of a sound. `start`, `end`: seconds of source time; `wave`: (samples,) float32."""

    start: float
    end: float
    wave: np.ndarray


def windows(
    blocks: Iterable[np.ndarray],
    rate: int,
    window_seconds: float | None,
    hop_seconds: float | None = None,
) -> Iterator[Window]:
    """Cut blocks of (samples,) into windows, one every `hop_seconds` (default: one after another).

    Window k starts at the sample nearest to k * hop. A shorter last one is given when it holds
    samples that no window before it held. None: one window with everything. Memory is bounded by
    a window and a block. When the blocks end in an InputError, the windows come first.
    """
    if window_seconds is None:
        yield from _whole(blocks, rate)
        return
    size = round(window_seconds * rate)
    # As a fraction: 0.1 s is then 2205 samples at 22.05 kHz, however many hops have been made.
    hop = window_seconds if hop_seconds is None else hop_seconds
    hop = Fraction(hop).limit_denominator(MAX_DENOMINATOR) * rate
    if size < 1 or hop < 1:
        raise UsageError(f"a window of {window_seconds} s every {hop_seconds} s at {rate} Hz")
    buffer = _Buffer()
    count = start = held = 0
    failure: InputError | None = None
    try:
        for block in blocks:
            buffer.append(block)
            while start + size <= buffer.end:
                held = start + size
                yield Window(start / rate, held / rate, buffer.cut(start, held))
                count += 1
                start = round(count * hop)
            buffer.drop(start)
    except InputError as error:
        failure = error
    if max(start, held) < buffer.end:
        yield Window(start / rate, buffer.end / rate, buffer.cut(start, buffer.end))
    if failure is not None:
        raise failure


def _whole(blocks: Iterable[np.ndarray], rate: int) -> Iterator[Window]:
    parts: list[np.ndarray] = []
    failure: InputError | None = None
    try:
        parts.extend(blocks)
    except InputError as error:
        failure = error
    if parts:
        wave = np.concatenate(parts)
        yield Window(0.0, len(wave) / rate, wave)
    if failure is not None:
        raise failure


class _Buffer:
    """Samples `begin` to `end` of a stream, joined only when a window is cut from them."""

    def __init__(self) -> None:
        self.begin = 0
        self.end = 0
        self._parts: list[np.ndarray] = []

    def append(self, block: np.ndarray) -> None:
        self._parts.append(block)
        self.end += len(block)

    def cut(self, start: int, end: int) -> np.ndarray:
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0][start - self.begin : end - self.begin].copy()

    def drop(self, start: int) -> None:
        """Forget what lies before `start`."""
        while self._parts and self.begin + len(self._parts[0]) <= start:
            self.begin += len(self._parts.pop(0))
        if self._parts and self.begin < start:
            self._parts[0] = self._parts[0][start - self.begin :]
            self.begin = start
