"""Tokens of many windows in one file that is mapped into memory, never read as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VALUES, INDEX = "tokens.f16", "tokens.npz"

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The windows of clips; of each window first its class tokens, then its patches row by row.

    values: (all tokens, dim) float16. starts: (windows,) each one's first token. grids: (windows,
    2) rows and columns of its patches, 1 row where an encoder gives tokens over time only. clips:
    for each clip the numbers of its windows.
    """

    values: NDArray[np.float16]
    starts: Index
    grids: Index
    clips: Sequence[Index]
    class_tokens: int

    @property
    def dim(self) -> int:
        return self.values.shape[1]

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, places: Index) -> Tokens:
        """Only these clips."""
        clips = [self.clips[place] for place in places]
        return Tokens(self.values, self.starts, self.grids, clips, self.class_tokens)

    def window(self, number: int) -> Tensor:
        """(class tokens + patches, dim) float32."""
        start = int(self.starts[number])
        stop = start + self.class_tokens + int(self.grids[number].prod())
        return torch.from_numpy(self.values[start:stop].astype(np.float32))

    def patches(self, place: int) -> Tensor:
        """(patches of all windows of a clip, dim) float32, without class tokens."""
        parts = [self.window(int(number))[self.class_tokens :] for number in self.clips[place]]
        return torch.cat(parts)

    def by_grid(self, places: Index) -> Iterator[tuple[tuple[int, int], list[int], list[int]]]:
        """Windows of these clips that have one grid: (grid, numbers of windows, and for each the
        position in `places` of its clip)."""
        found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for position, place in enumerate(places):
            for number in self.clips[place]:
                rows, columns = self.grids[number]
                numbers, positions = found.setdefault((int(rows), int(columns)), ([], []))
                numbers.append(int(number))
                positions.append(position)
        for grid, (numbers, positions) in found.items():
            yield grid, numbers, positions


class TokenWriter:
    """Appends windows to a folder; `finish` writes what says where they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = open(folder / VALUES, "wb")  # noqa: SIM115
        self._windows: dict[int, list[int]] = {}
        self._starts: list[int] = []
        self._grids: list[tuple[int, int]] = []
        self._end = 0

    def add(self, place: int, tokens: NDArray[np.float16], grid: tuple[int, int]) -> None:
        """One window of clip `place`: tokens (class tokens + patches, dim)."""
        self._windows.setdefault(place, []).append(len(self._starts))
        self._starts.append(self._end)
        self._grids.append(grid)
        self._end += len(tokens)
        self._dim = tokens.shape[1]
        self._file.write(tokens.tobytes())

    def finish(self, places: Sequence[int], class_tokens: int) -> None:
        """Only the clips of `places` are kept; every one has a window."""
        self._file.close()
        windows = [self._windows[place] for place in places]
        np.savez(
            self.folder / INDEX,
            starts=np.array(self._starts, np.int64),
            grids=np.array(self._grids, np.int64).reshape(-1, 2),
            windows=np.array([number for own in windows for number in own], np.int64),
            counts=np.array([len(own) for own in windows], np.int64),
            shape=np.array([self._end, self._dim if windows else 0, class_tokens]),
        )

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()


def load(folder: Path) -> Tokens:
    """What a TokenWriter wrote to `folder`. Raises OSError or ValueError."""
    with np.load(folder / INDEX) as stored:
        length, dim, class_tokens = (int(value) for value in stored["shape"])
        ends = stored["counts"].cumsum()
        clips = np.split(stored["windows"], ends[:-1]) if len(ends) else []
        starts, grids = stored["starts"], stored["grids"]
    empty = np.zeros((0, dim), np.float16)
    values = np.memmap(folder / VALUES, np.float16, "r", shape=(length, dim)) if length else empty
    return Tokens(values, starts, grids, clips, class_tokens)
