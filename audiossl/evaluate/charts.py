"""Drawings of a report as inline SVG: intervals, a map of clips. Colours come from the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

COLOURS = 8  # --c0 ... --c7 of the page
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
WIDTH, ROW = 760, 26
LEFT, RIGHT = 210, 20  # of an interval's axis: room for names
MAP_HEIGHT, MARGIN = 520, 28
MOST_POINTS = 4000
LINE, LETTER = 15, 8  # of a name in the map
MOST_NAMES = 30  # of classes written into the map


def shown(text: str) -> str:
    """Text that may stand in a page: escaped, and what cannot be shown replaced."""
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return html.escape(
        "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in whole)
    )


def intervals(rows: Sequence[tuple[str, float, float, float]], what: str) -> str:
    """rows: (name, mean, low, high) in [0, 1] -> one line each, with its interval."""
    height = ROW * (len(rows) + 2)
    first = math.floor(10 * min(low for _, _, low, _ in rows))
    last = max(first + 1, math.ceil(10 * max(high for *_, high in rows)))
    scale = 10 * (WIDTH - LEFT - RIGHT) / (last - first)

    def x(value: float) -> float:
        return round(LEFT + (value - first / 10) * scale, 1)

    parts = []
    for tick in (tenth / 10 for tenth in range(first, last + 1)):
        at = x(tick)
        parts.append(
            f'<line class="grid" x1="{at}" x2="{at}" y1="{ROW / 2}" y2="{height - ROW}"/>'
            f'<text class="tick" x="{at}" y="{height - 8}" text-anchor="middle">{tick:g}</text>'
        )
    for number, (label, mean, low, high) in enumerate(rows, 1):
        y = ROW * number
        parts.append(
            f"<g><title>{shown(label)}: {mean:.4f} ({low:.4f} – {high:.4f})</title>"
            f'<text x="{LEFT - 14}" y="{y + 4}" text-anchor="end">{shown(label)}</text>'
            f'<line class="range" x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}"/>'
            f'<circle class="mean" cx="{x(mean)}" cy="{y}" r="5"/></g>'
        )
    return _svg("intervals", height, f"{what} with 95 % intervals", parts)


def scatter(
    places: NDArray[np.float64],
    classes: NDArray[np.int64],
    labels: Sequence[str],
    names: Sequence[str],
    title: str,
) -> str:
    """One mark a clip at `places` (clips, 2), in the colour and shape of its class.

    classes: (clips,) places in `labels`. names: what is said of a clip that is pointed at.
    """
    low, high = places.min(0), places.max(0)
    room = np.array([WIDTH, MAP_HEIGHT]) - 2 * MARGIN
    at = MARGIN + room * (places - low) / np.where(high > low, high - low, 1)
    at[:, 1] = MAP_HEIGHT - at[:, 1]  # SVG counts downwards
    chosen = range(0, len(at), math.ceil(len(at) / MOST_POINTS))
    parts = [
        f"<g><title>{shown(names[i])}</title>{mark(int(classes[i]), at[i, 0], at[i, 1])}</g>"
        for i in chosen
    ]
    if len(labels) <= MOST_NAMES:
        middles = []
        for number in sorted({int(number) for number in classes}):
            x, y = np.median(at[classes == number], axis=0)
            middles.append((labels[number], float(x), float(y)))
        parts += [
            f'<text class="name" x="{x:.1f}" y="{y:.1f}">{shown(label)}</text>'
            for label, x, y in apart(middles)
        ]
    return _svg("map", MAP_HEIGHT, title, parts)


def apart(names: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Names at their (x, y), those that would lie on another moved down."""
    placed: list[tuple[str, float, float]] = []
    for name, x, y in sorted(names, key=lambda item: item[2]):
        for other, at, height in placed:
            if abs(at - x) < LETTER * (len(name) + len(other)) / 2 and y < height + LINE:
                y = height + LINE
        placed.append((name, x, y))
    return placed


def legend(labels: Sequence[str]) -> str:
    """A list of classes with their marks."""
    items = (
        f'<li><svg width="16" height="16" viewBox="0 0 16 16" aria-hidden="true">'
        f"{mark(number, 8, 8)}</svg> {shown(label)}</li>"
        for number, label in enumerate(labels)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def mark(number: int, x: float, y: float) -> str:
    """The mark of class `number`: all colours in one shape, then in the next."""
    own = f'style="--own:var(--c{number % COLOURS})"'
    shape = SHAPES[number // COLOURS % len(SHAPES)]
    if shape == "circle":
        return f'<circle {own} cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    lines = {
        "square": "m-4-4h8v8h-8z",
        "triangle": "m0-5.5 5 9h-10z",
        "diamond": "m0-6 6 6-6 6-6-6z",
        "cross": "m-4-4 8 8m0-8-8 8",
    }
    return f'<path class="{shape}" {own} d="M{x:.1f} {y:.1f}{lines[shape]}"/>'


def _svg(name: str, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="{name}" role="img" viewBox="0 0 {WIDTH} {height}"'
        f' aria-label="{shown(title)}">{"".join(parts)}</svg>'
    )
