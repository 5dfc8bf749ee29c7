"""Praat's TextGrid: tiers of intervals or points, to and from text.

Praat reads a text file as a flat row of numbers, quoted strings and flags. All other words, and
what follows a free-standing exclamation mark, are comment, so the long form and the short one are
the same file to it (Praat manual, "TextGrid file formats"; what ends a string or a number was tried
out with Praat 6.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from audiossl.errors import InputError
from audiossl.output.records import TIME_DIGITS
from audiossl.output.tables import SHOWN, corrupt, ordered, trimmed, unified

INTERVALS, POINTS = "IntervalTier", "TextTier"

_TOKEN = re.compile(r'(?P<string>"(?:[^"]|"")*+")(?=\s|\Z)|(?P<comment>!.*)|(?P<word>\S+)')
_NUMBER = re.compile(r"([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)[A-Za-z]*", re.ASCII)


@dataclass(frozen=True)
class Tier:
    """One tier. `items`: (start, end, text) in seconds, in order; a point has both times equal."""

    name: str
    items: tuple[tuple[float, float, str], ...]
    points: bool = False


def write(tiers: Sequence[Tier], start: float, end: float) -> str:
    """A TextGrid in the long form, from `start` to `end` seconds.

    Intervals must not overlap within a tier; what lies between them is filled with empty ones, so
    that every tier covers all of the time, as Praat demands.
    """
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        *_borders(start, end),
        "tiers? <exists> ",
        f"size = {len(tiers)} ",
        "item []: ",
    ]
    for number, tier in enumerate(tiers, 1):
        lines += [
            f"    item [{number}]:",
            f'        class = "{POINTS if tier.points else INTERVALS}" ',
            f"        name = {_quoted(tier.name)} ",
            *_borders(start, end, 8),
            *(_point_lines(tier) if tier.points else _interval_lines(tier, start, end)),
        ]
    return "\n".join(lines) + "\n"


def read(text: str) -> list[Tier]:
    """The tiers of a TextGrid in the long form, the short form or anything between.

    Empty intervals are left out. Raises InputError (code "corrupt") that names the line.
    """
    values = _Values(text)
    if not values.string("the file type").startswith("ooTextFile"):
        raise corrupt(values.line, "not a Praat text file")
    if (kind := values.string("the object class")) != "TextGrid":
        raise corrupt(values.line, f"a Praat {kind[:SHOWN]}, not a TextGrid")
    values.number("the start time")
    values.number("the end time")
    if values.flag() == "<absent>":
        return []
    return [_read_tier(values) for _ in range(values.count("the number of tiers"))]


def _borders(start: float, end: float, indent: int = 0) -> list[str]:
    space = " " * indent
    return [
        f"{space}xmin = {trimmed(start, TIME_DIGITS)} ",
        f"{space}xmax = {trimmed(end, TIME_DIGITS)} ",
    ]


def _point_lines(tier: Tier) -> list[str]:
    lines = [f"        points: size = {len(tier.items)} "]
    for number, (time, _, text) in enumerate(tier.items, 1):
        lines += [
            f"        points [{number}]:",
            f"            number = {trimmed(time, TIME_DIGITS)} ",
            f"            mark = {_quoted(text)} ",
        ]
    return lines


def _interval_lines(tier: Tier, start: float, end: float) -> list[str]:
    items = _gapless(tier.items, start, end)
    lines = [f"        intervals: size = {len(items)} "]
    for number, (left, right, text) in enumerate(items, 1):
        lines += [
            f"        intervals [{number}]:",
            *_borders(left, right, 12),
            f"            text = {_quoted(text)} ",
        ]
    return lines


def _gapless(
    items: Sequence[tuple[float, float, str]], start: float, end: float
) -> list[tuple[float, float, str]]:
    filled: list[tuple[float, float, str]] = []
    at = start
    for left, right, text in items:
        if trimmed(at, TIME_DIGITS) != trimmed(left, TIME_DIGITS):
            filled.append((at, left, ""))
        filled.append((left, right, text))
        at = right
    if not filled or trimmed(at, TIME_DIGITS) != trimmed(end, TIME_DIGITS):
        filled.append((at, end, ""))
    return filled


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


class _Values:
    """The numbers, strings and flags of a Praat text file, one after the other."""

    def __init__(self, text: str) -> None:
        self.line = 1
        self._tokens = _tokens(unified(text))

    def string(self, what: str) -> str:
        token = self._next(what)
        if token[0] != '"':
            raise self._unexpected(token, what)
        return token[1:-1].replace('""', '"')

    def number(self, what: str) -> float:
        token = self._next(what)
        match = _NUMBER.fullmatch(token)
        value = float(match[1]) if match else math.inf
        if not math.isfinite(value):
            raise self._unexpected(token, what)
        return value

    def count(self, what: str) -> int:
        value = self.number(what)
        if value < 0 or value != int(value):
            raise corrupt(self.line, f"{what} cannot be {value:g}")
        return int(value)

    def flag(self) -> str:
        token = self._next("<exists> or <absent>")
        if token not in ("<exists>", "<absent>"):
            raise self._unexpected(token, "<exists> or <absent>")
        return token

    def _next(self, what: str) -> str:
        self.line, token = next(self._tokens, (self.line, ""))
        if not token:
            raise corrupt(self.line, f"the file ends where {what} should be")
        return token

    def _unexpected(self, token: str, what: str) -> InputError:
        return corrupt(self.line, f"expected {what}, got {token[:SHOWN]}")


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    """(line, token) of all that is not comment."""
    line, at = 1, 0
    for match in _TOKEN.finditer(text):
        line, at = line + text.count("\n", at, match.start()), match.start()
        token = match.group()
        if match.lastgroup == "word" and token[0] == '"':
            raise corrupt(line, "a quoted text that does not end, or a quote in it not doubled")
        if match.lastgroup == "string" or token[0] in "+-<0123456789":
            yield line, token


def _read_tier(values: _Values) -> Tier:
    kind = values.string("the class of a tier")
    if kind not in (INTERVALS, POINTS):
        raise corrupt(values.line, f"a tier of class {kind[:SHOWN]!r}")
    name = values.string("the name of a tier")
    values.number("the start of a tier")
    values.number("the end of a tier")
    points = kind == POINTS
    read_item = _read_point if points else _read_interval
    items = [read_item(values) for _ in range(values.count("the size of a tier"))]
    return Tier(name, tuple(item for item in items if points or item[2]), points)


def _read_point(values: _Values) -> tuple[float, float, str]:
    time = values.number("the time of a point")
    return time, time, values.string("the mark of a point")


def _read_interval(values: _Values) -> tuple[float, float, str]:
    start = values.number("the start of an interval")
    end = values.number("the end of an interval")
    return *ordered(start, end, values.line), values.string("the text of an interval")
