"""Spectrograms of clips, kept on disk: the second epoch and the next run decode nothing.

    FOLDER/ab/abcdef....features    (frames, mel) float16, then a footer: lengths and a checksum

Spectrograms are kept before normalisation: `frontend.log_mel` of a whole clip, of which any crop
that begins at a whole frame is a part. Clips with a single crop, and the windows of evaluation, are
cut and filled as waves first and kept one by one, so that what a frontend does at the ends of a
wave is done there too. The result equals that of the waves, up to the rounding of float16.

A file's name is a hash of everything that its content depends on: the sound's file, its size and
time of change, the part of it, the frontend, and the version of audiossl. A file appears when it is
complete, so several processes may write the same one. Each process checks a file when it first
reads it, and computes it again if it is damaged. No file stays open.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import torch

import audiossl
from audiossl import caches
from audiossl import frontend as frontends
from audiossl.atomic import atomic_write
from audiossl.audio.sources import unreadable
from audiossl.audio.windows import windows
from audiossl.data.clip import clip_blocks, clip_seconds, fill
from audiossl.data.rows import Row
from audiossl.errors import InputError, OutputError, RecipeError
from audiossl.frontend.spectrogram import Frontend

VERSION = 1  # of what is kept on disk
FOLDER = "features"  # in the cache folder
MAGIC = b"features"
FOOTER = Struct("<8sQQQI")  # MAGIC, samples of the wave, frames, mels, CRC-32 of the frames

Part = tuple[int, np.ndarray]  # samples of a wave, and (frames, mel) float16 of them


class Stored(NamedTuple):
    """A kept spectrogram.

    samples: length of the wave.
    frames: (frames, mel) float16, mapped from disk.
    """

    samples: int
    frames: np.ndarray


class SpectrogramCache:
    """Spectrograms of crops and windows of one length.

    frontend: config of the frontend that computes them.
    samples: length of a crop or window, at the frontend's rate.
    short: how shorter clips are filled (`clip.fill`).
    folder: where they are kept; None: FOLDER in the cache folder.

    Methods return spectrograms as (mel, frames) float32, normalised. They raise InputError if a
    clip cannot be read, OutputError if nothing can be kept.
    """

    def __init__(
        self, frontend: dict[str, Any], samples: int, short: str, folder: str | None = None
    ) -> None:
        self.frontend = frontends.build(frontend)
        self.samples, self.short, self.rate = samples, short, self.frontend.rate
        self.least = samples + self.frontend.hop  # of a clip with more than one crop
        config = self.frontend.config()
        config.pop("preset", None)  # only a name for the rest
        self.sliced = frontends.build({**config, "samples": None})
        self.cut_dependent = self._cut_dependent(config)
        self.facts = [VERSION, audiossl.__version__, config]
        self.folder = Path(folder).expanduser() if folder else caches.root() / FOLDER
        self.silent = _log_mel(self.frontend, np.zeros(samples, np.float32))
        self.sound: set[str] = set()  # files that this process has checked

    def crop(self, row: Row, share: float) -> np.ndarray:
        """The spectrogram of one crop.

        row: the clip.
        share: where the crop begins, in [0, 1) of the possible positions, rounded down to a whole
            frame.

        Raises RecipeError as `check` does.
        """
        facts = self._facts(row)
        one, whole = _name(facts, "crop", self.samples, self.short), _name(facts, "whole")
        kept = None if self.cut_dependent else self._read(whole)
        if kept is None or kept.samples < self.least:
            kept = self._read(one) or self._compute(row, one, whole)
        first = 0
        if kept.samples >= self.least:
            first = int(share * (kept.samples - self.samples + 1)) // self.frontend.hop
        return self._finished(kept.frames[first : first + len(self.silent)])

    def window(self, row: Row, number: int, count: int) -> np.ndarray:
        """The spectrogram of one window.

        row: the clip.
        number: the window's number, from 0.
        count: number of windows, side by side, in the clip.
        """
        name = _name(self._facts(row), "windows", self.samples, self.short, count)
        kept = self._read(name) or self._write(name, self._windows(row, count))
        first = number * len(self.silent)
        return self._finished(kept.frames[first : first + len(self.silent)])

    def silence(self) -> np.ndarray:
        """The spectrogram of a silent crop."""
        return self._finished(self.silent)

    def check(self, rows: Sequence[Row]) -> None:
        """Raise RecipeError if frames depend on where the wave is cut and a clip has several crops:
        then the frames of a crop are not part of the whole clip's."""
        if self.cut_dependent is None:
            return

        def seconds(row: Row) -> float:
            with contextlib.suppress(
                InputError
            ):  # an unreadable clip is reported when its turn comes
                return clip_seconds(row)
            return 0.0

        with ThreadPoolExecutor() as pool:
            for row, length in zip(rows, pool.map(seconds, rows), strict=True):
                if round(length * self.rate) >= self.least:
                    raise self._refusal(row)

    def _refusal(self, row: Row) -> RecipeError:
        value = self.facts[-1][self.cut_dependent]
        seconds = self.samples / self.rate
        return RecipeError(
            f"recipe data.cache: features, but with model.frontend.{self.cut_dependent} {value!r}"
            f" the frames of a crop are not part of a longer clip's ({row.name}): give crop_seconds"
            f" that hold any clip ({seconds:g} now), or set data.cache to none or memory"
        )

    def _cut_dependent(self, config: dict[str, Any]) -> str | None:
        """The frontend's argument that makes a crop's frames differ from the clip's; None: none."""
        front, cut = self.frontend, config["samples"]
        if cut is not None and cut > self.samples:
            return "samples"
        if not front.hop <= front.span <= self.samples:
            return "window"
        return front.cut_dependent

    def _facts(self, row: Row) -> str:
        """Everything that the frames of a row depend on, as JSON."""
        try:
            status = os.stat(row.path)
        except OSError as error:
            raise unreadable(error) from error
        where = [os.path.abspath(row.path), status.st_size, status.st_mtime_ns]
        return json.dumps([*self.facts, where, row.member, row.start, row.end], default=vars)

    def _compute(self, row: Row, one: str, whole: str) -> Stored:
        """Keep the only crop of a clip as `one`, or all frames of a longer clip as `whole`."""
        blocks = clip_blocks(row, self.rate)
        first = next(blocks)
        while len(first) < self.least and (block := next(blocks, None)) is not None:
            first = np.concatenate((first, block))
        if len(first) >= self.least:
            if self.cut_dependent is not None:
                raise self._refusal(row)
            return self._write(whole, self._slices(chain([first], blocks)))
        wave = fill(first[: self.samples], self.samples, self.short)
        return self._write(one, [(len(first), _log_mel(self.frontend, wave))])

    def _slices(self, blocks: Iterable[np.ndarray]) -> Iterator[Part]:
        """The frames of a wave that comes in blocks, with bounded memory."""
        hop, span = self.sliced.hop, self.sliced.span
        held = np.zeros(0, np.float32)
        for block in blocks:
            held = np.concatenate((held, block))
            count = max(0, (len(held) - span) // hop + 1)
            frames = self.silent[:0]
            if count:
                frames = _log_mel(self.sliced, held[: (count - 1) * hop + span])
            yield len(block), frames
            held = held[count * hop :]

    def _windows(self, row: Row, count: int) -> Iterator[Part]:
        """Window by window; silence if the clip ends before the last one."""
        blocks = clip_blocks(row, self.rate)
        waves = (window.wave for window in windows(blocks, self.rate, self.samples / self.rate))
        given = 0
        for given, wave in enumerate(
            waves, 1
        ):  # read to the end, so that a damaged clip gives no window
            if given <= count:
                filled = fill(wave, self.samples, self.short)
                yield len(wave), _log_mel(self.frontend, filled)
        for _ in range(given, count):
            yield 0, self.silent

    def _finished(self, frames: np.ndarray) -> np.ndarray:
        """frames: (frames, mel) float16 -> (mel, frames) float32, normalised."""
        spec = torch.from_numpy(np.ascontiguousarray(frames.T, np.float32))
        return self.frontend.clip.finished([spec[None]])[0].numpy()

    def _read(self, name: str) -> Stored | None:
        """The spectrogram kept under a name; None if there is none or it is damaged."""
        try:
            content = np.memmap(self._path(name), np.uint8, "r")
        except (OSError, ValueError):  # an empty file cannot be mapped
            return None
        if len(content) < FOOTER.size:
            return None
        data, footer = content[: -FOOTER.size], content[-FOOTER.size :].tobytes()
        magic, samples, frames, mels, check = FOOTER.unpack(footer)
        if magic != MAGIC or mels != self.frontend.mels or len(data) != 2 * frames * mels:
            return None
        if name not in self.sound:
            if zlib.crc32(data.data) != check:
                return None
            self.sound.add(name)
        return Stored(samples, data.view(np.float16).reshape(frames, mels))

    def _write(self, name: str, parts: Iterable[Part]) -> Stored:
        path = self._path(name)
        samples = count = check = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot keep features in {path.parent}: {error.strerror}") from error
        with atomic_write(path) as file:
            for length, frames in parts:
                data = frames.tobytes()
                file.write(data)
                samples, count = samples + length, count + len(frames)
                check = zlib.crc32(data, check)
            file.write(FOOTER.pack(MAGIC, samples, count, self.frontend.mels, check))
        kept = self._read(name)
        if kept is None:
            raise OutputError(f"cannot keep features: {path} does not read as it was written")
        return kept

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.features"


def _name(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode("ascii")).hexdigest()


@torch.inference_mode()
def _log_mel(frontend: Frontend, wave: np.ndarray) -> np.ndarray:
    """wave: (samples,) -> (frames, mel) float16.

    Computed on one thread, as in every worker: the last bits may depend on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        prepared = frontend.clip.prepared(torch.from_numpy(wave)[None])
        return np.ascontiguousarray(frontend.log_mel(prepared)[0].T.numpy(), np.float16)
    finally:
        torch.set_num_threads(threads)
