"""A network slid over sounds: windows in batches, results in their order, memory flat.

What tagging and embedding share: audio.stream -> windows -> batches -> network.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiossl.audio import reading as audio
from audiossl.audio.reading import Source, Window
from audiossl.audio.salvage import Salvaged
from audiossl.errors import InputError, UsageError
from audiossl.inference.network import Network

BATCH_SIZE = 4  # windows of one file at a time; on a CPU more gains nothing
WINDOW_SECONDS = 10.0  # where a checkpoint names no window of its own
AHEAD = 8  # batches that may be under way or waiting, a file

Tap = Callable[[np.ndarray], None]
Function = Callable[[np.ndarray], np.ndarray]  # (batch, samples) float32 -> (batch, ...)
Started = tuple[list[Window], Future[np.ndarray] | np.ndarray]  # a batch, and its result


@dataclass(frozen=True)
class Span:
    """What a network gives for a stretch of sound.

    start, end: seconds.
    values: float32; scores in [0, 1] of (classes,), or an embedding of (dim,).
    """

    start: float
    end: float
    values: np.ndarray


def check_windows(window: float | None, hop: float | None) -> None:
    """Raise UsageError unless both are lengths of time in seconds, or None."""
    for name, seconds in (("window", window), ("hop", hop)):
        if seconds is not None and not 0 < seconds < math.inf:
            raise UsageError(f"{name}: {seconds} s is no length of time")


@dataclass(frozen=True)
class Inference:
    """How a model is slid over sounds.

    `batch_size`: windows of one file that go in at a time: files never share a batch.
    `executor`: where batches are computed beside reading (None: all in the calling thread); results
    are the same, and come in order.
    Raises UsageError on a batch of nothing.
    """

    model: Network
    batch_size: int = BATCH_SIZE
    executor: Executor | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size: {self.batch_size} windows, at least 1 is needed")

    def slide(
        self,
        function: Function,
        source: Source,
        window: float | None = None,
        hop: float | None = None,
        tap: Tap | None = None,
        **reading: Any,
    ) -> Iterator[tuple[Window, np.ndarray]]:
        """(window, what `function` gives for it), one every `hop` seconds (default: side by side).

        `window`: seconds, by default the model's own. The last one ends with the file and is as
        long as the others. `tap` sees each block of samples at the model's rate; `reading` goes to
        `audio.stream`. Raises InputError, after the results of what could be read; UsageError on
        a window that the model cannot take whole.
        """
        window = self.window(window)
        with audio.stream(source, self.model.rate, **reading) as stream:
            blocks = _tapped(stream, tap) if tap else stream
            pieces = audio.windows(blocks, stream.rate, window, hop or window)
            yield from self._run(function, _full_tail(pieces, stream.rate, window), window)

    def window(self, asked: float | None) -> float:
        """Seconds of a window: those asked for, or the model's own; the frontend cuts nothing off.

        Raises UsageError on more than the model hears.
        """
        most, rate = self.model.longest, self.model.rate
        if asked is None:
            usual = self.model.window_seconds or WINDOW_SECONDS
            return usual if most is None else min(usual, most / rate)
        if most is not None and round(asked * rate) > most:
            raise UsageError(
                f"a window of {asked:g} s: {self.model.name} hears the first"
                f" {most / rate:g} s of one"
            )
        return asked

    def _run(
        self, function: Function, windows: Iterable[Window], seconds: float
    ) -> Iterator[tuple[Window, np.ndarray]]:
        def run(group: list[Window]) -> np.ndarray:
            try:
                return function(np.stack([window.wave for window in group]))
            except ValueError as error:  # an encoder's word for less than it can take
                length = len(group[0].wave) / self.model.rate
                problem = f"too short for {self.model.name}: {error}"
                if length < seconds:
                    raise InputError(problem, code="short") from error
                raise UsageError(f"a window of {length:g} s is {problem}") from error

        def started() -> Iterator[Started]:
            for group, last in _batches(windows, self.batch_size):
                # Beside the last batch nothing is left to read, so it is not worth handing over,
                # but to the one thread that talks to a GPU.
                here = last and str(self.model.device) == "cpu"
                there = None if here else self.executor
                yield group, there.submit(run, group) if there else run(group)

        pending: deque[Started] = deque()
        batches = Salvaged(started())
        for batch in batches:
            pending.append(batch)
            if len(pending) >= (AHEAD if self.executor else 1):
                yield from _paired(*pending.popleft())
        while pending:
            yield from _paired(*pending.popleft())
        batches.raise_error()


def name_of(source: Source) -> str:
    """What records call a source: its path, or "-"."""
    return os.fsdecode(source) if isinstance(source, str | os.PathLike) else "-"


def _tapped(blocks: Iterable[np.ndarray], tap: Tap) -> Iterator[np.ndarray]:
    for block in blocks:
        tap(block)
        yield block


def _full_tail(windows: Iterator[Window], rate: int, seconds: float) -> Iterator[Window]:
    """Make the last window as long as the others by starting it earlier.

    A tail of a few milliseconds alone would be judged on almost nothing.
    """
    size = round(seconds * rate)
    before: Window | None = None
    for window in windows:
        if before is not None and len(window.wave) < size and window.start <= before.end:
            overlap = round((before.end - window.start) * rate)
            joined = np.concatenate([before.wave, window.wave[overlap:]])[-size:]
            window = Window(window.end - len(joined) / rate, window.end, joined)
        yield window
        before = window


def _batches(windows: Iterable[Window], size: int) -> Iterator[tuple[list[Window], bool]]:
    """(at most `size` windows of one length, whether they are the last), in order."""
    group: list[Window] = []
    found = Salvaged(windows)
    for window in found:
        if group and (len(group) == size or len(group[0].wave) != len(window.wave)):
            yield group, False
            group = []
        group.append(window)
    if group:
        yield group, True
    found.raise_error()


def _paired(
    group: list[Window], result: Future[np.ndarray] | np.ndarray
) -> Iterator[tuple[Window, np.ndarray]]:
    rows = result.result() if isinstance(result, Future) else result
    yield from zip(group, rows, strict=True)
