"""Embedder: audio in, vectors out: one a file, a window or a token.

audio.stream -> windows -> frontend -> encoder, window by window, so that memory does not grow with
the length of a file. An embedding depends on the samples of its window and on nothing else: not on
other windows of its batch, other files, or their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import torch

from audiossl.audio.reading import DEFAULT_LIMITS, Limits, NanPolicy, RawFormat, Source, Window
from audiossl.audio.salvage import Salvaged
from audiossl.errors import InputError, UsageError
from audiossl.hub import find as hub
from audiossl.inference.many import Sources, each, is_many
from audiossl.inference.sliding import BATCH_SIZE, Inference, Span, check_windows, name_of
from audiossl.model import Model, load
from audiossl.models.parts.layers import Timing
from audiossl.output.records import EmbedRecord, ErrorRecord

Group = tuple[Window, list[Span]]  # what one window gives

POOLS = ("mean", "max", "statistics")
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class EmbedOptions:
    """What a record is.

    `window`, `hop`: seconds. With `hop` one record a window, with `tokens` one a token; else, and
    whenever `pool` is given, one a file, pooled over its windows or tokens: "mean" (the default),
    "max", or "statistics", the mean and behind it the standard deviation (2 * dim numbers).
    `dtype`: of the vectors, "float32" or "float16".
    Raises UsageError on an unknown value.
    """

    pool: str | None = None
    window: float | None = None
    hop: float | None = None
    tokens: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, value, known in (("pool", self.pool, POOLS), ("dtype", self.dtype, DTYPES)):
            if value is not None and value not in known:
                raise UsageError(f"{name}: {value!r} is not one of {', '.join(known)}")
        check_windows(self.window, self.hop)

    @property
    def pooled(self) -> str | None:
        """How a file becomes one vector; None for a record a window or token."""
        return self.pool or (None if self.hop or self.tokens else "mean")


class Embedder:
    """A loaded model that embeds.

    `executor`: where batches of windows are computed (None: in the calling thread); results are the
    same, and come in order.
    """

    def __init__(
        self, model: Model, batch_size: int = BATCH_SIZE, executor: Executor | None = None
    ) -> None:
        self.model = model
        self.inference = Inference(model, batch_size, executor)
        self.device = next(model.parameters()).device

    @classmethod
    def load(
        cls, name: str = hub.DEFAULTS["embed"], device: str = "cpu", **options: Any
    ) -> Embedder:
        """`name`: an embedded model, a model folder or `hf:owner/repo`; a tagger's encoder embeds
        too. `options` go to the constructor. Raises ModelError."""
        return cls(load(name, device), **options)

    @property
    def dim(self) -> int:
        """Numbers in the vector of a window or token."""
        return int(self.model.encoder.dim)  # type: ignore[arg-type]

    def size(self, options: EmbedOptions) -> int:
        """Numbers in the vector of a record."""
        return self.dim * (2 if options.pooled == "statistics" else 1)

    def check(self, options: EmbedOptions) -> None:
        """Raise UsageError on what this model cannot do: to ask before hours of work."""
        self.inference.window(options.window)
        if options.tokens:
            _ = self._timing

    @property
    def _timing(self) -> Timing:
        timing = getattr(self.model.encoder, "timing", None)
        if isinstance(timing, Timing):
            return timing
        name = self.model.config.architecture["name"]
        raise UsageError(f"the tokens of a model of architecture {name!r} have no times")

    def windows(
        self,
        source: Source,
        window: float | None = None,
        hop: float | None = None,
        **reading: Any,
    ) -> Iterator[Span]:
        """The encoder's own embedding of each window; the last ends with the file and is as long as
        the others.

        `window`: seconds, by default the model's own; `hop`: by default the window. `reading` goes
        to `audio.stream`. Raises InputError, after the vectors of what could be read.
        """
        for _window, spans in self._by_window(source, window, hop, **reading):
            yield from spans

    def tokens(
        self,
        source: Source,
        window: float | None = None,
        hop: float | None = None,
        **reading: Any,
    ) -> Iterator[Span]:
        """The encoder's tokens over time, in order; arguments as for `windows`.

        One token a moment of the encoder's grid: of a ViT, a column of patches, averaged over its
        frequencies. Its time, which follows from frontend and encoder, lies around the middle of
        what it was made from, cut at the window's ends. Where windows overlap a moment is given
        once: a window goes on with the token whose middle is the first behind the end of the last.
        A file shorter than a token gives one.
        Raises UsageError where the encoder's tokens have no place in time.
        """
        for _window, spans in self._by_token(source, window, hop, **reading):
            yield from spans

    def embed(
        self,
        source: Source,
        name: str | None = None,
        options: EmbedOptions | None = None,
        **reading: Any,
    ) -> Iterator[EmbedRecord]:
        """Records of one input, called `name`: one a file, window or token, as `options` say.

        Raises InputError, after the records of what could be read.
        """
        options = options or EmbedOptions()
        name = name_of(source) if name is None else name
        method = self._by_token if options.tokens else self._by_window
        groups = method(source, options.window, options.hop, **reading)
        if options.pooled:
            groups = _pooled(groups, options.pooled)
        for _window, spans in groups:
            for span in spans:
                vector = _checked(span, options.dtype)
                yield EmbedRecord(name, span.start, span.end, vector, self.model.config.name)

    def _by_window(
        self, source: Source, window: float | None, hop: float | None, **reading: Any
    ) -> Iterator[Group]:
        sliding = self.inference.slide(self._embed, source, window, hop, **reading)
        for cut, vector in sliding:
            yield cut, [Span(cut.start, cut.end, vector)]

    def _by_token(
        self, source: Source, window: float | None, hop: float | None, **reading: Any
    ) -> Iterator[Group]:
        timing, covered = self._timing, 0.0
        sliding = self.inference.slide(self._timeline, source, window, hop, **reading)
        for cut, vectors in sliding:
            spans = self._moments(cut, vectors, timing, covered)
            yield cut, spans
            if spans:  # a window's last token may end long before the window does
                covered = spans[-1].end

    def _embed(self, waves: np.ndarray) -> np.ndarray:
        """waves: (batch, samples) float32 at the model's rate -> (batch, dim)."""
        with torch.inference_mode():
            return self.model.embed(self._batch(waves)).float().cpu().numpy()

    def _timeline(self, waves: np.ndarray) -> np.ndarray:
        """waves: (batch, samples) -> (batch, moments, dim)."""
        with torch.inference_mode():
            spec = self.model.frontend(self._batch(waves))
            return self.model.encoder.timeline(spec).float().cpu().numpy()  # type: ignore[operator]

    def _batch(self, waves: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(waves).to(self.device)

    def _moments(
        self, cut: Window, vectors: np.ndarray, timing: Timing, covered: float
    ) -> list[Span]:
        """The tokens whose middle lies behind `covered`: seconds, the end of the last one given."""
        frontend, count = self.model.frontend, len(cut.wave)
        new = round((covered - cut.start) * frontend.rate)
        # In samples of the window: where frame 0 begins, half a hop before its middle.
        origin = frontend.centre - frontend.hop / 2 - frontend.clip.offset(count)
        spans = []
        for k, vector in enumerate(vectors):
            start = origin + (timing.first + k * timing.hop) * frontend.hop
            end = start + timing.width * frontend.hop
            if new <= (start + end) / 2 < count or (k == 0 and new <= 0):
                begin, stop = (max(start, 0) / frontend.rate, min(end, count) / frontend.rate)
                spans.append(Span(cut.start + begin, cut.start + stop, vector))
        return spans


class _EmbedSettings(TypedDict, total=False):
    """Keyword arguments of `embed`, for its two signatures."""

    batch_size: int
    pool: str | None
    window: float | None
    hop: float | None
    tokens: bool
    dtype: str
    nan: NanPolicy
    limits: Limits
    raw: RawFormat | None
    progress: bool


@overload
def embed(
    source: Source, model: str | Model = ..., device: str = ..., **options: Unpack[_EmbedSettings]
) -> Iterator[EmbedRecord]: ...


@overload
def embed(
    source: Sources, model: str | Model = ..., device: str = ..., **options: Unpack[_EmbedSettings]
) -> Iterator[EmbedRecord | ErrorRecord]: ...


def embed(
    source: Source | Sources,
    model: str | Model = hub.DEFAULTS["embed"],
    device: str = "cpu",
    *,
    batch_size: int = BATCH_SIZE,
    pool: str | None = None,
    window: float | None = None,
    hop: float | None = None,
    tokens: bool = False,
    dtype: str = "float32",
    nan: NanPolicy = "error",
    limits: Limits = DEFAULT_LIMITS,
    raw: RawFormat | None = None,
    progress: bool = False,
) -> Iterator[EmbedRecord] | Iterator[EmbedRecord | ErrorRecord]:
    """Embed one file, `next(audiossl.embed("clip.wav")).embedding`, or many.

    Each embedding is (dim,), or (2 * dim,) with pool "statistics". Records come while files are
    read, so memory does not grow with their length.

    source: a path, "-" for standard input, an open binary file, or an iterable of these. Of several
    the records come in their order; an input that cannot be read gives an ErrorRecord, behind the
    records of what could be read of it.
    model: a name, a model folder, `hf:owner/repo`, or a model that is loaded.
    device: where a model given by name is loaded: "auto", "cpu", "cuda", "cuda:N" or "mps".
    batch_size: windows of one file that go in at a time.
    pool: "mean", "max" or "statistics": one record a file, over its windows or tokens.
    window: seconds; by default the model's own.
    hop: seconds from one window's start to the next; one record a window, unless `pool` is given.
    tokens: one record a token of the encoder, unless `pool` is given.
    dtype: number type of the vectors, "float32" or "float16".
    nan: samples that are not finite numbers are an "error", or read as "zero".
    limits: what a header may claim.
    raw: how headerless PCM lies; None: the file says.
    progress: show a bar on stderr that counts the files of an iterable.

    Raises ModelError or UsageError; of a single source InputError, while its records are taken.
    """
    chosen = EmbedOptions(pool, window, hop, tokens, dtype)
    loaded = load(model, device) if isinstance(model, str) else model
    embedder = Embedder(loaded, batch_size)

    def work(one: Source) -> Iterator[EmbedRecord]:
        return embedder.embed(one, options=chosen, nan=nan, limits=limits, raw=raw)

    return each(source, work, progress) if is_many(source) else work(source)  # type: ignore[arg-type]


def _pooled(groups: Iterator[Group], pool: str) -> Iterator[Group]:
    """One vector over all; what was read before an InputError is pooled and given first."""
    pooling, read = _Pooling(), Salvaged(groups)
    first = last = None
    for window, spans in read:
        first, last = first or window, window
        for span in spans:
            pooling.add(span.values)
    if first is not None and last is not None:
        yield last, [Span(first.start, last.end, pooling.result(pool))]
    read.raise_error()


class _Pooling:
    """Mean, deviation and maximum of vectors that come one by one, in float64 (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, vector: np.ndarray) -> None:
        """vector: (dim,)."""
        if not self.count:
            self.highest = vector
            self.mean, self.squares = np.zeros(len(vector)), np.zeros(len(vector))
        self.count += 1
        self.highest = np.maximum(self.highest, vector)
        with np.errstate(invalid="ignore"):  # what is not finite is refused at the end
            deviation = vector - self.mean
            self.mean = self.mean + deviation / self.count
            self.squares = self.squares + deviation * (vector - self.mean)

    def result(self, pool: str) -> np.ndarray:
        """(dim,), or with "statistics" (2 * dim,), float32."""
        if pool == "max":
            return self.highest
        if pool == "mean":
            return self.mean.astype(np.float32)
        # Of all there is, not estimated from a sample: divided by the number itself.
        deviation = np.sqrt(self.squares / self.count)
        return np.concatenate([self.mean, deviation]).astype(np.float32)


def _checked(span: Span, dtype: str) -> np.ndarray:
    """The vector as `dtype`. Raises InputError unless all of it is finite."""
    with np.errstate(over="ignore"):
        vector = span.values.astype(dtype)
    if np.isfinite(vector).all():
        return vector
    most = float(np.abs(span.values).max())
    reason = f"{most:g} is beyond float16: --dtype float32" if math.isfinite(most) else "NaN or Inf"
    raise InputError(f"the embedding at {span.start:.3f} s: {reason}", code="not-finite")
