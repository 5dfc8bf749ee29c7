"""Clips for training and evaluation, in an order and with random draws that (seed, epoch, position)
alone decide: whatever the number of workers, and whenever a run was interrupted.

`Stream` is an endless line of positions; the one integer it starts from is all that a resumed run
needs. A dataset is asked for a `Draw` and makes its own generator from it.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from audiossl.config.sections import Augment
from audiossl.data import manifest
from audiossl.data.augment import augment_wave
from audiossl.data.clip import Forward, clip_blocks, clip_seconds, fill, read_clip
from audiossl.data.manifest import Row
from audiossl.data.spectrogram_cache import Features
from audiossl.errors import AudiosslError, InputError

SKIPPED = "skipped"  # key of a batch: [(path, why)], taken out before a method sees the batch
CROP_LIMIT = 4  # a clip longer than this many crops or windows is not decoded into memory


class Draw(NamedTuple):
    """The `position`-th item of pass `epoch` is `index`; the pair (epoch, position) is unique."""

    epoch: int
    position: int
    index: int

    def generator(self, seed: int) -> np.random.Generator:
        """The source of everything random about this item."""
        return np.random.default_rng((seed, self.epoch, self.position))


class Items(Protocol):
    """What the loop can train on: a length, and one item (tensors and numbers by name) a draw.

    With a method `batch(draws) -> dict[str, Tensor]` it makes whole batches itself.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Draw, /) -> dict[str, Any]: ...


class Stream(Sampler[list[Draw]]):
    """Endless batches of draws over `size` items: epoch after epoch, each in its own order.

    start: draws already used. With `weights` (size,) an epoch draws with replacement. Of several
    processes number `turn` of `turns` takes every `turns`-th batch, so that together they use the
    draws that one alone would.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        weights: np.ndarray | None = None,
        turn: int = 0,
        turns: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start, self.weights = start, weights
        self.turn, self.turns = turn, turns

    def __iter__(self) -> Iterator[list[Draw]]:
        return itertools.islice(self._batches(), self.turn, None, self.turns)

    def _batches(self) -> Iterator[list[Draw]]:
        epoch, position = divmod(self.start, self.size)
        order = self.order(epoch)
        while True:
            batch = []
            while len(batch) < self.batch_size:
                if position == self.size:
                    epoch, position = epoch + 1, 0
                    order = self.order(epoch)
                batch.append(Draw(epoch, position, int(order[position])))
                position += 1
            yield batch

    def order(self, epoch: int) -> np.ndarray:
        """(size,) int64: the items of one epoch in turn."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.weights is None:
            return rng.permutation(self.size)
        return rng.choice(self.size, self.size, p=self.weights)


class _Decoded:
    """Rows as waves at one rate: decoded when asked for, or once and kept; or their `features`."""

    def __init__(
        self, rows: Sequence[Row], labels: Sequence[str], rate: int, features: Features | None
    ) -> None:
        self.rows, self.rate, self.features = list(rows), rate, features
        self.columns = {label: i for i, label in enumerate(labels)}
        self.cache: dict[int, np.ndarray] = {}
        self.bad: dict[int, str] = {}  # place in rows -> why it cannot be read

    def fill_cache(self) -> None:
        """Decode every clip once and keep it as float16 (a clip of 10 s at 16 kHz: 320 kB)."""

        def decode(row: Row) -> np.ndarray | str:
            try:
                return read_clip(row, self.rate).astype(np.float16)
            except InputError as error:
                return error.message

        with ThreadPoolExecutor() as pool:
            for place, clip in enumerate(pool.map(decode, self.rows)):
                if isinstance(clip, str):
                    self.bad[place] = clip
                else:
                    self.cache[place] = clip

    def item(self, place: int, sound: np.ndarray, known: bool = True) -> dict[str, Any]:
        """wave (samples,) float32, or with features spec (mel, frames) float32; target (classes,)
        float32 (1, 0, -1 unknown); index: the row's number in its manifest."""
        row = self.rows[place]
        target = manifest.target(row, self.columns)
        if not known:
            target[:] = manifest.UNKNOWN
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
        features: Features | None = None,
    ) -> None:
        super().__init__(rows, labels, rate, features)
        self.samples, self.seed = max(1, round(crop_seconds * rate)), seed
        self.short, self.augment = short, augment or Augment()
        self.seconds: dict[int, float] = {}
        self.background: Clips | None = None
        if self.augment.background is not None:
            self.background = Clips(
                manifest.read(self.augment.background), (), rate, crop_seconds, short="repeat"
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
        features: Features | None = None,
    ) -> None:
        super().__init__(rows, labels, rate, features)
        self.samples, self.short = max(1, round(window_seconds * rate)), short
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
            self.last = (place, read_clip(self.rows[place], self.rate))
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


class _Batches(Dataset[dict[str, Any] | AudiosslError]):
    """Asked for a list of draws, gives a batch, or the error that `_whole` raises.

    What a worker raises reaches the loop as a text with the worker's traceback.
    """

    def __init__(self, items: Any) -> None:
        self.items = items

    def __getitem__(self, draws: list[Any]) -> dict[str, Any] | AudiosslError:
        try:
            if hasattr(self.items, "batch"):
                return self.items.batch(draws)
            return collate([self.items[draw] for draw in draws])
        except AudiosslError as error:
            return error


def _whole(batch: dict[str, Any] | AudiosslError) -> dict[str, Any]:
    if isinstance(batch, AudiosslError):
        try:
            raise batch
        finally:
            del batch  # or error and frame would hold each other, and the frames the workers
    return batch


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items -> batch: tensors stacked, numbers as tensors, the skipped joined."""
    skipped = [entry for item in items for entry in item.pop(SKIPPED, ())]
    return {**default_collate(items), SKIPPED: skipped}


def train_loader(items: Any, stream: Stream, workers: int = 0) -> Iterator[dict[str, Any]]:
    """Endless batches of `items` along `stream`."""
    return map(_whole, _loader(_Batches(items), stream, workers))


def valid_loader(
    items: Any, batch_size: int, workers: int = 0, turn: int = 0, turns: int = 1
) -> Iterator[dict[str, Any]]:
    """All items once, in order, the last batch perhaps smaller.

    Of several processes number `turn` of `turns` gets every `turns`-th batch; where these do not
    come out even, the first batch again, so that all get as many.
    """
    size = len(items)
    batches = [list(range(i, min(i + batch_size, size))) for i in range(0, size, batch_size)]
    batches += batches[:1] * (-len(batches) % turns)
    return map(_whole, _loader(_Batches(items), batches[turn::turns], workers))


def _loader(batches: _Batches, sampler: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_loop,
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_the_loop(_worker: int) -> None:
    """Ctrl-C, torchrun and Slurm signal whole process groups: the loop saves first, and needs its
    workers for that. They end when it says so, or within seconds of its death."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
