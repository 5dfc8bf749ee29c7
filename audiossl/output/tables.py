"""Lines, fields and numbers of text tables, with errors that name the line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from audiossl.errors import InputError

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
SHOWN = 40  # characters of a wrong field that an error repeats


def corrupt(line: int, what: str) -> InputError:
    """The error for text that breaks its format at `line` (counted from 1)."""
    return InputError(f"line {line}: {what}", code="corrupt")


def lines(text: str) -> list[tuple[int, str]]:
    """(number, content) of the lines that are not blank, whatever ends them."""
    return [item for item in enumerate(unified(text).split("\n"), 1) if item[1].strip()]


def unified(text: str) -> str:
    """`text` without byte order mark, its lines ended by line feeds."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def exactly(fields: list[str], count: int, line: int) -> list[str]:
    """`fields`, of which there must be `count`."""
    if len(fields) != count:
        raise corrupt(line, f"{len(fields)} fields, {count} expected")
    return fields


def is_number(field: str) -> bool:
    """Whether `field` is a decimal number: no underscores, no "nan", as Python's float takes."""
    return _NUMBER.fullmatch(field) is not None


def number(field: str, line: int) -> float:
    """The finite number in `field`."""
    value = float(field) if is_number(field) else math.inf
    if not math.isfinite(value):
        raise corrupt(line, f"expected a number, got {field[:SHOWN]!r}")
    return value


def optional(field: str | None, line: int) -> float | None:
    """The finite number in `field`, None when it is empty or not there."""
    return number(field, line) if field and field.strip() else None


def span(start: str, end: str, line: int) -> tuple[float, float]:
    """Two times in order."""
    return ordered(number(start, line), number(end, line), line)


def ordered(start: float, end: float, line: int) -> tuple[float, float]:
    """`start` and `end`, which must not come before it."""
    if end < start:
        raise corrupt(line, f"ends at {end:g}, before it starts at {start:g}")
    return start, end


def trimmed(value: float, digits: int) -> str:
    """`value` with at most `digits` decimals, none of them idle: 2.5, 3, 0.000001."""
    text = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0"
    return text.rstrip("0").rstrip(".") if "." in text else text


def readable(text: str) -> str:
    """`text` with the bytes of a name that are no UTF-8 (by surrogateescape) as `\\xe9`.

    For text that is read by people and other programs, which know no such bytes. It is not undone
    on reading: a name may hold a backslash itself.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def delimited(values: Sequence[object], delimiter: str = ",") -> str:
    """One line of CSV or TSV. None is empty; what needs quotes gets them, doubled inside.

    It is valid UTF-8 whatever names are in it: `readable`.
    """
    return delimiter.join(_quoted(value, delimiter) for value in values) + "\n"


def _quoted(value: object, delimiter: str) -> str:
    # Python 3.11's csv.writer leaves a lone carriage return unquoted, and no reader takes that.
    text = "" if value is None else str(value)
    text = text if text.isascii() else readable(text)
    if '"' in text or "\r" in text or "\n" in text or delimiter in text:
        return '"' + text.replace('"', '""') + '"'
    return text
