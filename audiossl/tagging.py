"""Tagger: audio in, labels over time out.

audio.stream -> windows -> frontend -> encoder -> head -> scores in [0, 1], window by window, so
that memory does not grow with the length of a file.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from audiossl import audio, hub
from audiossl.audio import Source, Window
from audiossl.errors import InputError, UsageError
from audiossl.labels import ontology
from audiossl.model import Model, load
from audiossl.records import Label, TagRecord

TOP_K = 5
THRESHOLD = 0.5  # from here on a calibrated label is more likely right than wrong
BATCH_SIZE = 4  # windows of one file at a time; on a CPU more gains nothing
WINDOW_SECONDS = 10.0  # where a checkpoint names no window of its own
AHEAD = 8  # batches that may be under way or waiting, a file


Tap = Callable[[np.ndarray], None]


@dataclass(frozen=True)
class Span:
    """Scores of one window. `start`, `end`: seconds; `scores`: (classes,) float32 in [0, 1]."""

    start: float
    end: float
    scores: np.ndarray


@dataclass(frozen=True)
class TagOptions:
    """How scores become records.

    `window`, `hop`: seconds; with `hop` one record a window, without it one a file, pooled over its
    windows by `pool` ("max": heard anywhere, "mean": heard throughout).
    `labels`: indices to keep, None for all.
    """

    top_k: int = TOP_K
    threshold: float = THRESHOLD
    window: float | None = None
    hop: float | None = None
    pool: str = "max"
    labels: tuple[int, ...] | None = None


class Tagger:
    """A loaded model that tags.

    `executor`: where batches of windows are computed (None: in the calling thread); results are the
    same, and come in order.
    """

    def __init__(
        self, model: Model, batch_size: int = BATCH_SIZE, executor: Executor | None = None
    ) -> None:
        if model.head is None:
            raise UsageError(f"model {model.config.name} has no labels: it embeds, it does not tag")
        self.model = model
        self.batch_size = batch_size
        self.executor = executor
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, name: str = hub.DEFAULTS["tag"], device: str = "cpu", **options: Any) -> Tagger:
        """`name`: an embedded model or a model folder. Raises ModelError."""
        return cls(load(name, device), **options)

    @property
    def labels(self) -> list[str]:
        return self.model.labels

    def find_labels(self, names: Iterable[str]) -> tuple[int, ...]:
        """Indices of the labels called `names`, in the model's order.

        A name of the AudioSet ontology that the model does not have stands for what is below it
        ("Animal": dog, rooster ...). Raises UsageError with a suggestion on an unknown name.
        """
        found: set[int] = set()
        for name in names:
            found.update(ontology.matches(name, self.labels))
        return tuple(sorted(found))

    def spans(
        self,
        source: Source,
        window: float | None = None,
        hop: float | None = None,
        tap: Tap | None = None,
        **reading: Any,
    ) -> Iterator[Span]:
        """Scores window by window; the last one ends with the file and is as long as the others.

        `tap` sees each block of samples at the model's rate; `reading` goes to `audio.stream`.
        Raises InputError, after the spans of what could be read.
        """
        window = window or self.model.config.window_seconds or WINDOW_SECONDS
        with audio.stream(source, self.model.rate, **reading) as stream:
            blocks = _tapped(stream, tap) if tap else stream
            pieces = audio.windows(blocks, stream.rate, window, hop or window)
            yield from self._score(_full_tail(pieces, stream.rate, window))

    def tag(
        self,
        source: Source,
        name: str | None = None,
        options: TagOptions | None = None,
        tap: Tap | None = None,
        **reading: Any,
    ) -> Iterator[TagRecord]:
        """Records of one input, called `name`: one a window with `options.hop`, else one.

        Raises InputError, after the records of what could be read.
        """
        options = options or TagOptions()
        name = _name(source) if name is None else name
        spans = self.spans(source, options.window, options.hop, tap, **reading)
        if options.hop is None:
            spans = _pooled(spans, options.pool)
        for span in spans:
            yield self._record(name, span, options)

    def _record(self, name: str, span: Span, options: TagOptions) -> TagRecord:
        kept = range(len(self.labels)) if options.labels is None else options.labels
        ranked = sorted(kept, key=lambda index: -span.scores[index])[: options.top_k]
        labels = [Label(self.labels[index], float(span.scores[index])) for index in ranked]
        sure = tuple(label for label in labels if label.score >= options.threshold)
        best = labels[0] if labels else None
        return TagRecord(name, span.start, span.end, sure, self.model.config.name, best)

    def _score(self, windows: Iterable[Window]) -> Iterator[Span]:
        pending: deque[tuple[list[Window], Future[np.ndarray] | np.ndarray]] = deque()
        try:
            for group in _batches(windows, self.batch_size):
                waves = np.stack([window.wave for window in group])
                job = self.executor.submit(self.scores, waves) if self.executor else None
                pending.append((group, job or self.scores(waves)))
                if len(pending) >= (AHEAD if self.executor else 1):
                    yield from _spans(*pending.popleft())
        except InputError:
            # What was read before the damage is good work: give it, then say what is wrong.
            while pending:
                yield from _spans(*pending.popleft())
            raise
        while pending:
            yield from _spans(*pending.popleft())

    def scores(self, waves: np.ndarray) -> np.ndarray:
        """waves: (batch, samples) float32 at the model's rate -> (batch, classes) in [0, 1]."""
        with torch.inference_mode():
            batch = torch.from_numpy(waves).to(self.device)
            return self.model.scores(self.model(batch)).float().cpu().numpy()


def tag(
    source: Source,
    model: str | Model = hub.DEFAULTS["tag"],
    device: str = "cpu",
    **options: Any,
) -> list[TagRecord]:
    """Tag one file: `audiossl.tag("clip.wav")[0].labels`.

    `options`: `top_k`, `threshold`, `window`, `hop` (seconds), `pool` ("max" or "mean"), `labels`
    (names). Raises InputError, ModelError or UsageError. To tag many files load the model once:
    `tagger = audiossl.Tagger.load()`, then `tagger.tag(path)`.
    """
    loaded = load(model, device) if isinstance(model, str) else model
    tagger = Tagger(loaded)
    if options.get("labels") is not None:
        options["labels"] = tagger.find_labels(options["labels"])
    return list(tagger.tag(source, options=TagOptions(**options)))


def _name(source: Source) -> str:
    return os.fsdecode(source) if isinstance(source, str | os.PathLike) else "-"


def _tapped(blocks: Iterable[np.ndarray], tap: Tap) -> Iterator[np.ndarray]:
    for block in blocks:
        tap(block)
        yield block


def _full_tail(windows: Iterator[Window], rate: int, seconds: float) -> Iterator[Window]:
    """Make the last window as long as the others by starting it earlier.

    A tail of a few milliseconds alone would be scored on almost nothing.
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


def _batches(windows: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Groups of at most `size` windows of one length, in order."""
    group: list[Window] = []
    try:
        for window in windows:
            if group and (len(group) == size or len(group[0].wave) != len(window.wave)):
                yield group
                group = []
            group.append(window)
    except InputError:
        if group:
            yield group
        raise
    if group:
        yield group


def _spans(group: Sequence[Window], result: Future[np.ndarray] | np.ndarray) -> Iterator[Span]:
    scores = result.result() if isinstance(result, Future) else result
    for window, row in zip(group, scores, strict=True):
        yield Span(window.start, window.end, row)


def _pooled(spans: Iterator[Span], pool: str) -> Iterator[Span]:
    """One span over all; what was read before an InputError is pooled and given first."""
    total: np.ndarray | None = None
    start = end = 0.0
    count, failure = 0, None
    try:
        for span in spans:
            if total is None:
                total, start = span.scores.astype(np.float64), span.start
            elif pool == "max":
                total = np.maximum(total, span.scores)
            else:
                total = total + span.scores
            count, end = count + 1, span.end
    except InputError as error:
        failure = error
    if total is not None:
        yield Span(start, end, total / count if pool == "mean" else total)
    if failure is not None:
        raise failure
