"""A spectrogram of fixed size, drawn while the sound streams by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FRAME_SECONDS = 0.04  # nearest power of two in samples: 46 ms at 44.1 kHz, 32 ms at 16 kHz
HOPS = 8  # per frame, at the finest
SPARSEST = 4  # hops between frames at most, so that frames always overlap by half
COLUMNS = 450  # of a long sound: this to twice as many, fewer than dots, so that none is lost
BANDS = 160
LOWEST = 40.0  # Hz: lower edge of the picture
CHUNK = 256  # frames transformed at a time
FLOOR = 1e-12  # of the loudest cell: -120 dB


def mel(hertz: np.ndarray) -> np.ndarray:
    """The mel scale of O'Shaughnessy (1987), as HTK has it."""
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


class SpectrogramSketch:
    """Takes blocks of a wave at `rate` Hz, and keeps at most 2 * `columns` cells of `bands` bands.

    A cell holds the highest power in its time. When the cells are full, neighbours are joined and
    cells last twice as long from then on; frames become sparser up to half a frame apart.
    """

    def __init__(self, rate: int, columns: int = COLUMNS, bands: int = BANDS) -> None:
        self.rate = rate
        self.size = max(32, 2 ** round(math.log2(FRAME_SECONDS * rate)))  # samples in a frame
        self.hop = self.size // HOPS
        self.bands = bands
        self._samples = 0
        self._tail = np.zeros(self.size // 2, dtype=np.float32)  # frames are centred on their time
        self._tail_start = -(self.size // 2)  # sample at which the tail starts
        self._next = 0  # the frame to come, in hops
        self._span = 1  # hops in a cell
        self._last = 0  # last frame seen, in hops
        self._cells = np.zeros((2 * columns, bands), dtype=np.float32)
        self._window = np.hanning(self.size + 1)[:-1].astype(np.float32)
        self._filters = self._make_filters()

    @property
    def seconds(self) -> float:
        return self._samples / self.rate

    def add(self, block: np.ndarray) -> None:
        """The next block. block: (samples,) float32."""
        step = CHUNK * self.size
        for start in range(0, len(block), step):
            part = np.asarray(block[start : start + step], dtype=np.float32)
            self._samples += len(part)
            self._consume(part)

    def image(self) -> tuple[np.ndarray, tuple[float, float]]:
        """The sketch after the last block: (bands, columns) in dB below the loudest cell, low bands
        first, and the times in seconds at which its first column starts and its last one ends."""
        self._consume(np.zeros(self.size, dtype=np.float32))
        used = self._cells[: self._last // self._span + 1]
        peak = float(used.max())
        power = np.maximum(used.T / peak, FLOOR) if peak > 0 else np.full(used.T.shape, FLOOR)
        start = -self._every / 2 * self.hop / self.rate
        return 10 * np.log10(power), (start, start + len(used) * self._span * self.hop / self.rate)

    def rows_of(self, hertz: Sequence[float]) -> np.ndarray:
        """Where in the image these frequencies are, in bands from its lowest one."""
        low, high = self._edges()
        return (mel(np.array(hertz)) - low) / (high - low) * (self.bands - 1)

    def _edges(self) -> tuple[float, float]:
        top = self.rate / 2
        return float(mel(np.array(min(LOWEST, top / 20)))), float(mel(np.array(top)))

    def _make_filters(self) -> np.ndarray:
        """Triangles between band centres, never narrower than the bins: (bins, bands)."""
        bins = np.fft.rfftfreq(self.size, 1 / self.rate)
        centres = 700.0 * np.expm1(np.linspace(*self._edges(), self.bands) / 1127.0)
        width = np.maximum(np.gradient(centres), self.rate / self.size)
        weight = np.maximum(0, 1 - np.abs(bins[:, None] - centres) / width)
        return (weight / weight.sum(axis=0)).astype(np.float32)

    def _consume(self, part: np.ndarray) -> None:
        self._tail = np.concatenate([self._tail, part])
        while (count := self._ready()) > 0:
            every = self._every
            first = self._first()
            stop = first + (count - 1) * every * self.hop + self.size
            frames = np.lib.stride_tricks.sliding_window_view(self._tail[first:stop], self.size)
            self._keep(frames[:: every * self.hop], every)
        drop = min(self._first(), len(self._tail))
        self._tail, self._tail_start = self._tail[drop:], self._tail_start + drop

    @property
    def _every(self) -> int:
        """Hops from one frame to the next."""
        return min(self._span, SPARSEST)

    def _first(self) -> int:
        """Where in the tail the next frame starts."""
        return self._next * self.hop - self.size // 2 - self._tail_start

    def _ready(self) -> int:
        """How many frames can be taken at once: all in cells that exist, at one distance."""
        if self._next >= len(self._cells) * self._span:
            self._join()
        every = self._every
        whole = (len(self._tail) - self._first() - self.size) // (every * self.hop) + 1
        heard = (self._samples // self.hop - self._next) // every + 1  # centred on a sample
        fitting = -(-(len(self._cells) * self._span - self._next) // every)
        return min(whole, heard, fitting, CHUNK)

    def _keep(self, frames: np.ndarray, every: int) -> None:
        spectrum = np.fft.rfft(frames * self._window, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32) @ self._filters
        hops = self._next + every * np.arange(len(frames))
        self._last, self._next = int(hops[-1]), int(hops[-1]) + every
        cells = hops // self._span
        starts = np.flatnonzero(np.diff(cells, prepend=-1))
        rows = cells[starts]
        highest = np.maximum.reduceat(power, starts, axis=0)
        self._cells[rows] = np.maximum(self._cells[rows], highest)

    def _join(self) -> None:
        half = len(self._cells) // 2
        self._cells[:half] = np.maximum(self._cells[0::2], self._cells[1::2])
        self._cells[half:] = 0
        self._span *= 2
        self._next += -self._next % self._every
