"""Tagger: audio in, labels over time out.

audio.stream -> windows -> frontend -> encoder -> head -> scores in [0, 1], window by window, so
that memory does not grow with the length of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, TypedDict, Unpack, overload

import numpy as np

from audiossl.audio.reading import DEFAULT_LIMITS, Limits, NanPolicy, RawFormat, Source
from audiossl.audio.salvage import Salvaged
from audiossl.errors import UsageError
from audiossl.hub import find as hub
from audiossl.inference import network
from audiossl.inference.many import Sources, each, is_many
from audiossl.inference.network import Classifier
from audiossl.inference.sliding import BATCH_SIZE, Inference, Span, Tap, check_windows, name_of
from audiossl.labels import ontology
from audiossl.output.records import ErrorRecord, Label, TagRecord

TOP_K = 5
THRESHOLD = 0.5  # from here on a calibrated label is more likely right than wrong
POOLS = ("max", "mean")


@dataclass(frozen=True)
class TagOptions:
    """How scores become records.

    `window`, `hop`: seconds; with `hop` one record a window, without it one a file, pooled over its
    windows by `pool` ("max": heard anywhere, "mean": heard throughout).
    `labels`: indices to keep, None for all.
    Raises UsageError on a value that makes no sense.
    """

    top_k: int = TOP_K
    threshold: float = THRESHOLD
    window: float | None = None
    hop: float | None = None
    pool: str = "max"
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise UsageError(f"pool: {self.pool!r} is not one of {', '.join(POOLS)}")
        if self.top_k < 1:
            raise UsageError(f"top_k: {self.top_k} labels, at least 1 is needed")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold: {self.threshold} is not between 0 and 1, as scores are")
        check_windows(self.window, self.hop)


class Tagger:
    """A loaded model that tags: `Model`, or its `Graph`, which needs no torch.

    `executor`: where batches of windows are computed (None: in the calling thread); results are the
    same, and come in order.
    """

    def __init__(
        self, model: Classifier, batch_size: int = BATCH_SIZE, executor: Executor | None = None
    ) -> None:
        if model.config.head is None:
            raise UsageError(f"model {model.name} has no labels: it embeds, it does not tag")
        self.model = model
        self.inference = Inference(model, batch_size, executor)
        self.device = model.device

    @classmethod
    def load(
        cls,
        name: str = hub.DEFAULTS["tag"],
        device: str = "cpu",
        backend: str = "auto",
        **options: Any,
    ) -> Tagger:
        """`name`: an embedded model, a model folder or `hf:owner/repo`; `backend`: as
        `network.load` has it. `options` go to the constructor. Raises ModelError."""
        return cls(network.load(name, device, backend), **options)

    @property
    def labels(self) -> list[str]:
        return self.model.labels

    def find_labels(self, names: str | Iterable[str]) -> tuple[int, ...]:
        """Indices of the labels called `names` (a str is one name), in the model's order.

        A name of the AudioSet ontology that the model does not have stands for what is below it
        ("Animal": dog, rooster ...). Raises UsageError with a suggestion on an unknown name.
        """
        found: set[int] = set()
        for name in [names] if isinstance(names, str) else names:
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
        sliding = self.inference.slide(self.scores, source, window, hop, tap, **reading)
        for place, scores in sliding:
            yield Span(place.start, place.end, scores)

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
        name = name_of(source) if name is None else name
        spans = self.spans(source, options.window, options.hop, tap, **reading)
        if options.hop is None:
            spans = _pooled(spans, options.pool)
        for span in spans:
            yield self._record(name, span, options)

    def _record(self, name: str, span: Span, options: TagOptions) -> TagRecord:
        kept = range(len(self.labels)) if options.labels is None else options.labels
        ranked = sorted(kept, key=lambda index: -span.values[index])[: options.top_k]
        labels = [Label(self.labels[index], float(span.values[index])) for index in ranked]
        sure = tuple(label for label in labels if label.score >= options.threshold)
        best = labels[0] if labels else None
        return TagRecord(name, span.start, span.end, sure, self.model.name, best)

    def scores(self, waves: np.ndarray) -> np.ndarray:
        """waves: (batch, samples) float32 at the model's rate -> (batch, classes) in [0, 1]."""
        return self.model.predict(waves)


class _TagSettings(TypedDict, total=False):
    """Keyword arguments of `tag`, for its two signatures."""

    backend: str
    batch_size: int
    top_k: int
    threshold: float
    window: float | None
    hop: float | None
    pool: str
    labels: str | Iterable[str] | None
    nan: NanPolicy
    limits: Limits
    raw: RawFormat | None
    progress: bool


@overload
def tag(
    source: Source,
    model: str | Classifier = ...,
    device: str = ...,
    **options: Unpack[_TagSettings],
) -> list[TagRecord]: ...


@overload
def tag(
    source: Sources,
    model: str | Classifier = ...,
    device: str = ...,
    **options: Unpack[_TagSettings],
) -> list[TagRecord | ErrorRecord]: ...


def tag(
    source: Source | Sources,
    model: str | Classifier = hub.DEFAULTS["tag"],
    device: str = "cpu",
    *,
    backend: str = "auto",
    batch_size: int = BATCH_SIZE,
    top_k: int = TOP_K,
    threshold: float = THRESHOLD,
    window: float | None = None,
    hop: float | None = None,
    pool: str = "max",
    labels: str | Iterable[str] | None = None,
    nan: NanPolicy = "error",
    limits: Limits = DEFAULT_LIMITS,
    raw: RawFormat | None = None,
    progress: bool = False,
) -> list[TagRecord] | list[TagRecord | ErrorRecord]:
    """Tag one file, `audiossl.tag("clip.wav")[0].labels`, or many: `audiossl.tag(paths)`.

    Gives one record a file, or with `hop` one a window: times in seconds, scores in [0, 1].

    source: a path, "-" for standard input, an open binary file, or an iterable of these. Of several
    the records come in their order; an input that cannot be read gives an ErrorRecord, behind the
    records of what could be read of it.
    model: a name, a model folder, `hf:owner/repo`, or a model that is loaded.
    device: where a model given by name is loaded: "auto", "cpu", "cuda", "cuda:N" or "mps".
    backend: what computes a model given by name: "auto", "torch" or "onnx".
    batch_size: windows of one file that go in at a time.
    top_k: labels per record, at most.
    threshold: labels with a lower score are left out.
    window: seconds; by default the model's own.
    hop: seconds from one window's start to the next; None: one record a file.
    pool: without `hop`, a file's score is its highest window's ("max") or their mean ("mean").
    labels: only these, by name; an ontology group such as Animal means every label below it.
    nan: samples that are not finite numbers are an "error", or read as "zero".
    limits: what a header may claim.
    raw: how headerless PCM lies; None: the file says.
    progress: show a bar on stderr that counts the files of an iterable.

    Raises ModelError or UsageError; of a single source InputError.
    """
    options = TagOptions(top_k, threshold, window, hop, pool)  # what is wrong is told before a load
    loaded = network.load(model, device, backend) if isinstance(model, str) else model
    tagger = Tagger(loaded, batch_size)
    if labels is not None:
        options = replace(options, labels=tagger.find_labels(labels))

    def work(one: Source) -> Iterator[TagRecord]:
        return tagger.tag(one, None, options, nan=nan, limits=limits, raw=raw)

    return list(each(source, work, progress) if is_many(source) else work(source))  # type: ignore[arg-type]


def _pooled(spans: Iterator[Span], pool: str) -> Iterator[Span]:
    """One span over all; what was read before an InputError is pooled and given first."""
    total: np.ndarray | None = None
    start = end = 0.0
    count = 0
    read = Salvaged(spans)
    for span in read:
        if total is None:
            total, start = span.values.astype(np.float64), span.start
        elif pool == "max":
            total = np.maximum(total, span.values)
        else:
            total = total + span.values
        count, end = count + 1, span.end
    if total is not None:
        yield Span(start, end, total / count if pool == "mean" else total)
    read.raise_error()
