"""Frozen features of the clips of a manifest: one vector a clip, or all of an encoder's tokens.

audio.stream -> windows of the model's own length -> frontend -> encoder, batch by batch. The vector
is the mean of `encoder.embed` over a clip's windows. Tokens stay apart, window by window, in a file
that is mapped into memory: a clip of 5 s through a ViT-B is 0.4 MB of float16, and no probe ever
needs all of them at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import nn

import audiossl
from audiossl.audio import reading as audio
from audiossl.data.clip import RowReader, runs
from audiossl.data.rows import Row
from audiossl.errors import InputError, OutputError
from audiossl.evaluate import tokens as token_files
from audiossl.evaluate.tokens import Tokens, TokenWriter
from audiossl.inference.sliding import BATCH_SIZE, Inference
from audiossl.model import Model
from audiossl.pipeline import workers as batch

POOLED, ERRORS = "pooled.npy", "errors.json"
AHEAD = 2  # batches that may be under way, a worker
LARGEST = 65504.0  # of float16
VERSION = 1  # of what is kept on disk
# Errors that will come again while file and decoder are the same, so they are cached. Others
# (permissions, a failing disk) may go away.
LASTING = {
    *("corrupt", "truncated", "empty", "short", "not-finite", "limits"),
    *("missing", "not-a-file", "unsupported"),
}

Errors = dict[int, InputError]


class Piece(NamedTuple):
    """One window, (samples,), of the row at `place`."""

    place: int
    wave: NDArray[np.float32]


class Read(NamedTuple):
    """The row at `place` has given its last window; `error`: why it must not count."""

    place: int
    error: InputError | None = None


class Encoded(NamedTuple):
    """A window through the encoder: its vector (dim,), or tokens (tokens, dim) that lie in `grid`
    (rows, columns)."""

    place: int
    values: NDArray[np.float32]
    grid: tuple[int, int]


@dataclass
class Extractor:
    """Runs a model over rows.

    model: its encoder gives the features, at its own rate.
    kind: "pooled" or "tokens".
    window: seconds, default the model's own. Windows stand side by side; a rest of less than half a
        window is left out.
    batch_size: windows that go through the encoder at once.
    jobs: threads; they change no result.
    progress: is told the name of each file that has been read.
    errors: filled with why rows gave nothing, by their place.
    """

    model: Model
    kind: str = "pooled"
    window: float | None = None
    batch_size: int = BATCH_SIZE
    jobs: int = 1
    progress: Callable[[str], None] = lambda _name: None
    errors: Errors = field(default_factory=dict)

    def encoded(self, rows: Sequence[Row]) -> Iterator[Encoded]:
        """Window by window, in order. A row that cannot be read to its end goes to `errors`."""
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        pending: deque[tuple[list[Piece], Future[list[Encoded]]]] = deque()
        with ThreadPoolExecutor(self.jobs if on_cpu else 1) as pool:
            try:
                for group in self._groups(rows):
                    pending.append((group, pool.submit(self._encode, group)))
                    if len(pending) > AHEAD * self.jobs:
                        yield from self._good(*pending.popleft())
                while pending:
                    yield from self._good(*pending.popleft())
            finally:
                for _, job in pending:
                    job.cancel()

    def _groups(self, rows: Sequence[Row]) -> Iterator[list[Piece]]:
        """Up to a batch of pieces of one length, of one or of several files."""

        def read(places: list[int]) -> Iterator[Piece | Read]:
            reader = RowReader(self.model.rate)
            for place in places:
                try:
                    for wave in self._windows(reader.blocks(rows[place])):
                        yield Piece(place, wave)
                    yield Read(place)
                except InputError as error:
                    yield Read(place, error)

        group: list[Piece] = []
        for _, found in batch.ordered(read, runs(rows), self.jobs):
            for item in found:
                if isinstance(item, Read):
                    if item.error is not None:
                        self.errors[item.place] = item.error
                    self.progress(os.path.basename(rows[item.place].name))
                    continue
                if group and len(group[0].wave) != len(item.wave):
                    yield group
                    group = []
                group.append(item)
                if len(group) == self.batch_size:
                    yield group
                    group = []
        if group:
            yield group

    def _windows(self, blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        rate = self.model.rate
        seconds = Inference(self.model).window(self.window)
        found = False
        for window in audio.windows(blocks, rate, seconds):
            if not found or len(window.wave) >= seconds * rate / 2:
                yield window.wave
            found = True

    @torch.inference_mode()
    def _encode(self, group: list[Piece]) -> list[Encoded]:
        encoder = self.model.encoder
        wave = torch.from_numpy(np.stack([piece.wave for piece in group]))
        spec = self.model.frontend(wave.to(next(encoder.parameters()).device))
        if self.kind == "pooled":
            values, grid = encoder.embed(spec), (0, 0)  # type: ignore[operator]
        else:
            values = encoder(spec)
            grid = token_grid(encoder, spec.shape[-1], values.shape[1])
        found = values.float().cpu().numpy()
        return [Encoded(piece.place, found[i], grid) for i, piece in enumerate(group)]

    def _good(self, group: list[Piece], job: Future[list[Encoded]]) -> Iterator[Encoded]:
        name = self.model.config.name
        try:
            items = job.result()
        except ValueError as error:  # an encoder's word for less than it can take
            problem = InputError(f"too short for {name}: {error}", code="short")
            self.errors |= {piece.place: problem for piece in group}
            return
        for item in items:
            if np.isfinite(item.values).all():
                yield item
            else:
                message = f"the features that {name} gives are not finite numbers"
                self.errors[item.place] = InputError(message, code="not-finite")


def token_grid(encoder: nn.Module, frames: int, tokens: int) -> tuple[int, int]:
    """(rows, columns) in which the encoder's patch tokens of `frames` frames lie.

    An encoder that names no grid of so many tokens has them over time only: one row.
    """
    patches = tokens - class_tokens(encoder)
    grid = getattr(encoder, "grid", None)
    if grid is not None:
        rows, columns = grid(frames)
        if rows * columns == patches:
            return rows, columns
    return 1, patches


def class_tokens(encoder: nn.Module) -> int:
    """How many of an encoder's tokens, the first ones, stand for the whole window."""
    return int(getattr(encoder, "class_tokens", 0))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Features:
    """Of `count` rows, without those in `errors`: pooled (clips, dim) float32, or tokens of as many
    clips."""

    count: int
    errors: Errors
    pooled: NDArray[np.float32] | None = None
    tokens: Tokens | None = None

    @property
    def places(self) -> NDArray[np.int64]:
        """(clips,) the row of each clip."""
        return np.array([place for place in range(self.count) if place not in self.errors], int)


def extract(extractor: Extractor, rows: Sequence[Row], digest: str, folder: Path) -> Features:
    """Features of `rows`, kept in `folder`, and taken from there when they are there already.

    rows: clips, in the order of the features.
    digest: of the model's weights. The files' names, sizes and dates, the windows, decoders and our
        version must also be the same for kept features to be used.
    folder: made if it is not there.

    Where a file changed meanwhile, or has an error that may pass, nothing is kept.
    Raises OutputError.
    """
    key = _key(extractor, rows, digest)
    place = folder / f"{extractor.kind}-{key}"
    try:
        if not place.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as made:
                whole = Path(made, "whole")
                _write(extractor, rows, whole)
                codes = {error.code for error in extractor.errors.values()}
                if codes - LASTING or _key(extractor, rows, digest) != key:
                    return load(whole, len(rows))  # what is mapped outlives its name
                if not place.is_dir():  # another process may have been faster
                    os.rename(whole, place)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot keep features in {folder}: {reason}") from error
    try:
        return load(place, len(rows))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{place}: damaged features: remove this folder") from error


def load(place: Path, count: int) -> Features:
    """What `extract` has kept of `count` rows. Raises OSError, ValueError, KeyError, TypeError."""
    said = json.loads((place / ERRORS).read_text())
    errors = {int(row): InputError(message, code) for row, (code, message) in said.items()}
    if (place / POOLED).exists():
        return Features(count, errors, pooled=np.load(place / POOLED))
    return Features(count, errors, tokens=token_files.load(place))


def _write(extractor: Extractor, rows: Sequence[Row], folder: Path) -> None:
    folder.mkdir()
    if extractor.kind == "tokens":
        _write_tokens(extractor, rows, folder)
    else:
        _write_pooled(extractor, rows, folder)
    failed = {place: [error.code, error.message] for place, error in extractor.errors.items()}
    (folder / ERRORS).write_text(json.dumps(failed))


def _write_tokens(extractor: Extractor, rows: Sequence[Row], folder: Path) -> None:
    with TokenWriter(folder) as writer:
        for item in extractor.encoded(rows):
            values = item.values.clip(-LARGEST, LARGEST).astype(np.float16)
            writer.add(item.place, values, item.grid)
        good = [place for place in range(len(rows)) if place not in extractor.errors]
        writer.finish(good, class_tokens(extractor.model.encoder))


def _write_pooled(extractor: Extractor, rows: Sequence[Row], folder: Path) -> None:
    sums: dict[int, tuple[NDArray[np.float64], int]] = {}
    for item in extractor.encoded(rows):
        total, windows = sums.get(item.place, (np.zeros(len(item.values)), 0))
        sums[item.place] = total + item.values, windows + 1
    means = [total / windows for place, (total, windows) in sorted(sums.items())
             if place not in extractor.errors]  # fmt: skip
    dim = int(extractor.model.encoder.dim)  # type: ignore[arg-type]
    np.save(folder / POOLED, np.array(means, np.float32).reshape(len(means), dim))


def _key(extractor: Extractor, rows: Sequence[Row], digest: str) -> str:
    facts: list[object] = [VERSION, audiossl.__version__, digest]
    facts += [extractor.window, extractor.batch_size, soundfile.__libsndfile_version__]
    with contextlib.suppress(metadata.PackageNotFoundError):
        facts.append(metadata.version("av"))
    state = functools.cache(_state)  # once, of many rows
    for row in rows:
        facts.append(state(row.path))
        facts.append([os.path.abspath(row.path), row.start, row.end, row.member])
    described = json.dumps(facts, default=dataclasses.astuple)
    return hashlib.sha256(described.encode("ascii")).hexdigest()[:24]


def _state(path: Path) -> object:
    """Size and time of change of a file, or the number of the error."""
    try:
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    except OSError as error:
        return error.errno
