"""A picture of what was heard: the spectrogram, and under it the labels over time.

`plot` draws a wave or a stream of blocks in memory that does not grow with its length. matplotlib
is the optional extra `plot`; it is imported only when a picture is drawn.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from audiossl.atomic import atomic_write
from audiossl.errors import UsageError
from audiossl.output.records import Label, TagRecord
from audiossl.output.sketch import SpectrogramSketch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 11.0, 120  # inches, dots per inch
SPECTROGRAM_HEIGHT, ROW_HEIGHT, MARGIN_HEIGHT = 3.1, 0.27, 1.15  # inches
ROWS = 12  # labels drawn at most
CELLS = 600  # columns of the label strip: fewer than dots, so that none is lost
DECIBELS = 80.0  # below the loudest cell all is black
LONGEST_LABEL, LONGEST_TITLE = 34, 100  # characters
TICKS = 9  # on the time axis, at most
TICK_SECONDS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 14400, 21600, 43200, 86400),
)
CLOCK_SECONDS = 120  # from here on the time axis reads minutes:seconds
KILOHERTZ = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check(path: str | os.PathLike[str]) -> None:
    """Raise UsageError if no picture could be drawn at `path`: to ask before hours of work."""
    if not os.fsdecode(path).lower().endswith(".png"):
        raise UsageError("pictures are PNG files: the name must end in .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("drawing needs matplotlib: pip install 'audiossl-toolkit[plot]'")


def plot(
    path: str | os.PathLike[str],
    wave: np.ndarray | Iterable[np.ndarray],
    rate: int,
    records: Sequence[TagRecord],
    title: str = "",
) -> None:
    """Draw the spectrogram of `wave` and the labels of `records` to the PNG file `path`.

    wave: (samples,) float32 at `rate` Hz, or an iterable of such blocks. Raises UsageError
    (matplotlib is missing, no PNG) and OutputError.
    """
    check(path)
    sketch = SpectrogramSketch(rate)
    for block in [wave] if isinstance(wave, np.ndarray) else wave:
        sketch.add(block)
    draw(path, sketch, records, title)


def draw(
    path: str | os.PathLike[str],
    sketch: SpectrogramSketch,
    records: Sequence[TagRecord],
    title: str = "",
) -> None:
    """As `plot`, from a sketch that has heard all of the sound."""
    check(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script the font lacks is drawn as boxes
        data = _png(sketch, records, title)
    with atomic_write(path) as file:
        file.write(data)


def _png(sketch: SpectrogramSketch, records: Sequence[TagRecord], title: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(layout="constrained", dpi=DPI)
        FigureCanvasAgg(figure)
        _fill(figure, sketch, records, title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def _fill(
    figure: Figure, sketch: SpectrogramSketch, records: Sequence[TagRecord], title: str
) -> None:
    best = best_labels(records)
    rows = max(2, min(len(best), ROWS)) * ROW_HEIGHT
    figure.set_size_inches(WIDTH, SPECTROGRAM_HEIGHT + rows + MARGIN_HEIGHT)
    grid = figure.add_gridspec(
        2, 2, height_ratios=[SPECTROGRAM_HEIGHT, rows], width_ratios=[1, 0.014]
    )
    upper, lower = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    figure.suptitle(shortened(title, LONGEST_TITLE, LONGEST_TITLE // 2), parse_math=False)
    bar = _draw_spectrogram(upper, sketch)
    figure.colorbar(bar, cax=figure.add_subplot(grid[0, 1]), label="dB below loudest")
    if not best:
        _draw_nothing(lower, records)
    elif len(records) == 1:
        _draw_bars(lower, best[:ROWS])
    else:
        strip = _draw_timeline(lower, records, best[:ROWS], sketch.seconds)
        figure.colorbar(strip, cax=figure.add_subplot(grid[1, 1]), label="score", ticks=[0, 0.5, 1])
    if len(best) > ROWS:
        lower.set_title(f"the {ROWS} highest of {len(best)} labels", loc="left", fontsize=8)


def best_labels(records: Iterable[TagRecord]) -> list[Label]:
    """Every label of `records` with its highest score, highest first, then by name."""
    best: dict[str, float] = {}
    for record in records:
        for item in record.labels:
            best[item.label] = max(item.score, best.get(item.label, 0.0))
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [Label(label, score) for label, score in ranked]


def strip(
    records: Sequence[TagRecord], names: Sequence[str], seconds: float, cells: int = CELLS
) -> np.ndarray:
    """Scores over time: (names, cells), highest where windows share a cell, 0 where none speaks.

    `records`: windows of one length, in order. Where they overlap, each speaks for the time that is
    nearer to its middle than to those of its neighbours, so that a label is not drawn longer than
    it was heard.
    """
    row = {name: index for index, name in enumerate(names)}
    image = np.zeros((len(names), cells), dtype=np.float32)
    for record, (start, end) in zip(records, own_times(records), strict=True):
        left = min(cells - 1, int(start / seconds * cells + 1e-6)) if seconds else 0
        right = max(left + 1, round(end / seconds * cells)) if seconds else cells
        for item in record.labels:
            if item.label in row:
                part = image[row[item.label], left:right]
                np.maximum(part, item.score, out=part)
    return image


def own_times(records: Sequence[TagRecord]) -> list[tuple[float, float]]:
    """The part of time that each window speaks for: up to half-way to its neighbours' middles."""
    middles = [(record.start + record.end) / 2 for record in records]
    borders = [(a + b) / 2 for a, b in pairwise(middles)]
    starts, ends = [float("-inf"), *borders], [*borders, float("inf")]
    return [
        (max(record.start, start), min(record.end, end))
        for record, start, end in zip(records, starts, ends, strict=True)
    ]


def _draw_spectrogram(axes: Axes, sketch: SpectrogramSketch) -> Any:
    image, (start, end) = sketch.image()
    shown = axes.imshow(
        image,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-DECIBELS,
        vmax=0,
        extent=(start, end, -0.5, len(image) - 0.5),
        interpolation="bilinear",
    )
    positions = sketch.rows_of([1000 * tick for tick in KILOHERTZ])
    space = len(image) / 16  # between two ticks at least
    kept: list[tuple[float, str]] = []
    for tick, row in zip(KILOHERTZ, positions, strict=True):
        if 0 <= row <= len(image) - 1 and (not kept or row - kept[-1][0] >= space):
            kept.append((row, f"{tick:g}"))
    axes.set_yticks([row for row, _ in kept], labels=[text for _, text in kept])
    axes.set_ylabel("frequency (kHz)")
    _time_axis(axes, sketch.seconds)
    return shown


def _draw_timeline(
    axes: Axes, records: Sequence[TagRecord], best: Sequence[Label], seconds: float
) -> Any:
    image = strip(records, [item.label for item in best], seconds)
    shown = axes.imshow(
        np.ma.masked_equal(image, 0),
        aspect="auto",
        cmap="YlGnBu",
        vmin=0,
        vmax=1,
        extent=(0, seconds or 1, len(best) - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.set_facecolor("#f4f4f4")
    _label_axis(axes, best)
    axes.hlines(np.arange(len(best) - 1) + 0.5, 0, seconds, colors="white", linewidth=1.5)
    beside = axes.get_yaxis_transform()
    axes.text(1.006, -0.6, "highest", transform=beside, va="bottom", fontsize=8)
    for row, item in enumerate(best):
        axes.text(1.006, row, f"{item.score:.2f}", transform=beside, va="center")
    _time_axis(axes, seconds)
    return shown


def _draw_bars(axes: Axes, best: Sequence[Label]) -> None:
    axes.barh(np.arange(len(best)), [item.score for item in best], height=0.7, color="#2c7fb8")
    for row, item in enumerate(best):
        axes.text(item.score + 0.006, row, f"{item.score:.2f}", va="center")
    axes.set_xlim(0, 1.04)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_ylim(len(best) - 0.5, -0.5)
    _label_axis(axes, best)
    axes.set_xlabel("score")


def _draw_nothing(axes: Axes, records: Sequence[TagRecord]) -> None:
    nearest = max((r.best for r in records if r.best), key=lambda item: item.score, default=None)
    text = "nothing known: no label reaches the threshold"
    if nearest is not None:
        text += f"\nnearest: {shortened(nearest.label)} {nearest.score:.2f}"
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", parse_math=False)


def _label_axis(axes: Axes, best: Sequence[Label]) -> None:
    names = [shortened(item.label) for item in best]
    axes.set_yticks(np.arange(len(best)), labels=names, parse_math=False)
    axes.tick_params(axis="y", length=0)


def _time_axis(axes: Axes, seconds: float) -> None:
    step = next((step for step in TICK_SECONDS if seconds <= TICKS * step), TICK_SECONDS[-1])
    ticks = [step * number for number in range(int(seconds / step) + 1)]
    clock = seconds >= CLOCK_SECONDS
    axes.set_xlim(0, seconds or 1)
    axes.set_xticks(ticks, labels=[clock_time(tick) if clock else f"{tick:g}" for tick in ticks])
    axes.set_xlabel(
        "time (h:min:s)" if seconds >= 3600 else "time (min:s)" if clock else "time (s)"
    )


def clock_time(seconds: float) -> str:
    """1:05 or 2:00:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shortened(text: str, longest: int = LONGEST_LABEL, tail: int = 0) -> str:
    """One printable line of at most `longest` characters, cut so that the last `tail` stay."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = re.sub(
        r"\s+", " ", "".join(char if char.isprintable() else " " for char in text)
    ).strip()
    if len(text) <= longest:
        return text
    return text[: longest - 1 - tail].rstrip(" ,") + "…" + text[len(text) - tail :]
