"""Rows to waves: crops for training, windows for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from audiossl.config.sections import Augment
from audiossl.data import reading
from audiossl.data import rows as tables
from audiossl.data.augment import augment_wave
from audiossl.data.clip import Forward, RowReader, clip_blocks, clip_seconds, fill, read_clip, runs
from audiossl.data.draws import SKIPPED, Draw
from audiossl.data.rows import UNKNOWN, Row
from audiossl.data.spectrogram_cache import SpectrogramCache
from audiossl.errors import InputError

CROP_LIMIT = 4  # a clip longer than this many crops or windows is not decoded into memory


class _Decoded:
    """Rows as waves at one rate: decoded when asked for, or once and kept; or their `features`."""

    def __init__(
        self,
        rows: Sequence[Row],
        labels: Sequence[str],
        rate: int,
        features: SpectrogramCache | None,
    ) -> None:
        self.rows, self.rate, self.features = list(rows), rate, features
        self.columns = {label: i for i, label in enumerate(labels)}
        self.cache: dict[int, np.ndarray] = {}
        self.bad: dict[int, str] = {}  # place in rows -> why it cannot be read

    def fill_cache(self) -> None:
        """Decode every clip once and keep it as float16 (a clip of 10 s at 16 kHz: 320 kB)."""

        def decode(places: list[int]) -> list[np.ndarray | str]:
            reader = RowReader(self.rate)
            return [decoded(reader, self.rows[place]) for place in places]

        def decoded(reader: RowReader, row: Row) -> np.ndarray | str:
            try:
                return reader.read(row).astype(np.float16)
            except InputError as error:
                return error.message

        with ThreadPoolExecutor() as pool:
            for place, clip in enumerate(chain.from_iterable(pool.map(decode, runs(self.rows)))):
                if isinstance(clip, str):
                    self.bad[place] = clip
                else:
                    self.cache[place] = clip

    def item(self, place: int, sound: np.ndarray, known: bool = True) -> dict[str, Any]:
        """wave (samples,) float32, or with features spec (mel, frames) float32; target (classes,)
        float32 (1, 0, -1 unknown); index: the row's number in its manifest."""
        row = self.rows[place]
        target = tables.target(row, self.columns)
        if not known:
            target[:] = UNKNOWN
        name = "wave" if self.features is None else "spec"
        values = {name: torch.from_numpy(sound), "target": torch.from_numpy(target)}
        return {**values, "index": row.number}


class Clips(_Decoded, Dataset[dict[str, Any]]):
    """Random crops of clips, for training; items as `_Decoded.item` has them.

    A file that cannot be read is replaced by the next that can, and named under `skipped`. With
    `augment.no_call` an item says whether a background stands in for it, under `no_call`.
    `features` are of crops as long as these, and never augmented.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        labels: Sequence[str],
        rate: int,
        crop_seconds: float,
        seed: int = 0,
        short: str = "repeat",
        augment: Augment | None = None,
        features: SpectrogramCache | None = None,
    ) -> None:
        super().__init__(rows, labels, rate, features)
        self.samples, self.seed = max(1, round(crop_seconds * rate)), seed
        self.short, self.augment = short, augment or Augment()
        self.seconds: dict[int, float] = {}
        self.background: Clips | None = None
        if self.augment.background is not None:
            self.background = Clips(
                reading.read(self.augment.background), (), rate, crop_seconds, short="repeat"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        skipped: list[tuple[str, str]] = []
        background = partial(self.background.pick, skipped) if self.background else None
        rng = draw.generator(self.seed)
        place, crop = self.nearest(draw.index, rng.random(), skipped)
        if self.features is not None:
            return {**self.item(place, crop), SKIPPED: skipped}
        item = self.item(place, augment_wave(crop, self.augment, rng, background))
        if background and self.augment.no_call:
            chance, which, where = rng.random(3)
            item["no_call"] = bool(chance < self.augment.no_call)
            if item["no_call"]:
                item["wave"] = torch.from_numpy(background(which, where))
                item["target"].zero_()
        return {**item, SKIPPED: skipped}

    def pick(self, skipped: list[tuple[str, str]], which: float, where: float) -> np.ndarray:
        """(samples,) float32: the crop at `where` of the clip at `which`, both in [0, 1)."""
        return self.nearest(int(which * len(self)), where, skipped)[1]

    def nearest(
        self, first: int, share: float, skipped: list[tuple[str, str]]
    ) -> tuple[int, np.ndarray]:
        """(place, crop) of the first clip from `first` on that can be read; others to `skipped`."""
        for step in range(len(self)):
            place = (first + step) % len(self)
            if place not in self.bad:
                try:
                    return place, self.crop(place, share)
                except InputError as error:
                    self.bad[place] = error.message
            skipped.append((self.rows[place].name, self.bad[place]))
        raise InputError(f"none of the {len(self)} files can be read: {skipped[-1][1]}")

    def crop(self, place: int, share: float) -> np.ndarray:
        """(samples,) float32 of a clip, or its spectrogram; `share` in [0, 1) of the places where
        the crop fits."""
        if self.features is not None:
            return self.features.crop(self.rows[place], share)
        clip = self.cache[place] if place in self.cache else self._decode(place, share)
        start = int(share * (len(clip) - self.samples + 1)) if len(clip) > self.samples else 0
        crop = clip[start : start + self.samples].astype(np.float32)
        return fill(crop, self.samples, self.short)

    def _decode(self, place: int, share: float) -> np.ndarray:
        """The clip, or of a much longer one only the crop."""
        row, length = self.rows[place], self.samples / self.rate
        if place not in self.seconds:
            self.seconds[place] = clip_seconds(row)
        seconds = self.seconds[place]
        if seconds <= CROP_LIMIT * length:
            return read_clip(row, self.rate)
        start = (row.start or 0.0) + share * (seconds - length)
        return read_clip(replace(row, start=start, end=start + length), self.rate)


class Windows(_Decoded, Dataset[dict[str, Any]]):
    """All windows of all clips one after another, for evaluation: nothing random.

    Items as `_Decoded.item` has them, so scores can be pooled by `index`. A window of a file that
    cannot be read is silent, its target unknown, and the file is named under `skipped`. A rest of
    less than half a window is left out.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        labels: Sequence[str],
        rate: int,
        window_seconds: float,
        short: str,
        features: SpectrogramCache | None = None,
    ) -> None:
        super().__init__(rows, labels, rate, features)
        self.samples, self.short = max(1, round(window_seconds * rate)), short
        self.reader = RowReader(rate)
        self.last: tuple[int, np.ndarray] | None = None
        self.long: tuple[int, Forward] | None = None  # the long clip that is being read
        self.whole: set[int] = set()  # long clips that were decoded to their end
        self.lengths = [self._length(place) for place in range(len(self.rows))]
        self.starts = [range(0, max(1, n - self.samples // 2), self.samples) for n in self.lengths]
        self.places = [(i, start) for i, starts in enumerate(self.starts) for start in starts]
        self.silent = np.zeros(self.samples, np.float32)
        if features is not None:
            self.silent = features.silence()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        place, start = self.places[number]
        sound = self.silent
        try:
            sound = self._sound(place, start)
        except InputError as error:
            self.bad[place] = error.message
        bad = place in self.bad
        skipped = [(self.rows[place].name, self.bad[place])] if bad else []
        return {**self.item(place, sound, known=not bad), SKIPPED: skipped}

    def _sound(self, place: int, start: int) -> np.ndarray:
        if place in self.bad:
            raise InputError(self.bad[place])
        if self.features is not None:
            count = len(self.starts[place])
            return self.features.window(self.rows[place], start // self.samples, count)
        return fill(self._part(place, start).astype(np.float32), self.samples, self.short)

    def _part(self, place: int, start: int) -> np.ndarray:
        """The windows of a clip come one after another: it is decoded once."""
        if place in self.cache:
            return self.cache[place][start : start + self.samples]
        if self.lengths[place] > CROP_LIMIT * self.samples:
            return self._forward(place, start).part(start, self.samples)
        if self.last is None or self.last[0] != place:
            self.last = (place, self.reader.read(self.rows[place]))
        return self.last[1][start : start + self.samples]

    def _forward(self, place: int, start: int) -> Forward:
        """A clip too long for memory: decoded to its end first, since none of a bad one counts."""
        if place not in self.whole:
            for _ in clip_blocks(self.rows[place], self.rate):
                pass
            self.whole.add(place)
        if self.long is None or self.long[0] != place or self.long[1].begin > start:
            self.long = (place, Forward(self.rows[place], self.rate))
        return self.long[1]

    def _length(self, place: int) -> int:
        try:
            return round(clip_seconds(self.rows[place]) * self.rate)
        except InputError as error:
            self.bad[place] = error.message
            return 0


def count_files(*items: Clips | Windows | None) -> int:
    """Distinct files behind the items, and behind their backgrounds: what `Skips` counts among."""
    present = [one for one in items if one is not None]
    present += [one.background for one in present if isinstance(one, Clips) and one.background]
    return len({row.name for one in present for row in one.rows})
