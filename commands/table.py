"""Records as a table for a terminal: one line per window, with bars for the scores."""

from __future__ import annotations

import os
import sys

from audiossl.output.writers import Record, TextWriter

BAR = "▏▎▍▌▋▊▉█"
BAR_CELLS = 8
FILE_CELLS = 32
GREEN, YELLOW, DIM, RESET = "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
STRONG = 0.6  # scores from this on are green


class Table(TextWriter):
    """One line per label; in colour on a terminal unless NO_COLOR is set."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def record(self, record: Record) -> str:
        if "error" in record:
            return ""  # reported on stderr
        place = place_of(record)
        if not record["labels"]:
            return place + self._paint(DIM, unsure(record)) + "\n"
        lines = [self._label(item["label"], item["score"]) for item in record["labels"]]
        indent = " " * len(place)
        return place + f"\n{indent}".join(lines) + "\n"

    def _label(self, label: str, score: float) -> str:
        colour = GREEN if score >= STRONG else YELLOW
        return f"{score:.2f} {self._paint(colour, bar(score))} {label}"

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{RESET}" if self._colour else text


class EmbedTable(TextWriter):
    """One line per record: file, times, dimensions and norm of the vector."""

    def record(self, record: Record) -> str:
        if "error" in record:
            return ""  # reported on stderr
        vector = record["embedding"].astype("float64")
        norm = float(vector @ vector) ** 0.5
        return f"{place_of(record)}{len(vector)} dims  norm {norm:.4g}\n"


def place_of(record: Record) -> str:
    """File and times, as the first columns."""
    return f"{shortened(record['file'])}  {clock(record['start'])}-{clock(record['end'])}  "


def unsure(record: Record) -> str:
    best = record.get("best")
    guess = f" (nearest: {best['label']} {best['score']:.2f})" if best else ""
    return f"no label{guess}"


def bar(score: float) -> str:
    """A score from 0 to 1 as a bar of BAR_CELLS characters, in eighths of a character."""
    eighths = round(min(max(score, 0.0), 1.0) * BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (BAR[rest - 1] if rest else "")).ljust(BAR_CELLS)


def clock(seconds: float) -> str:
    """Seconds as m:ss.s, or as h:mm:ss.s from one hour on."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def shortened(name: str) -> str:
    """A name cut to FILE_CELLS characters; its end is kept, because names differ there."""
    safe = "".join(c if c.isprintable() else "?" for c in name)
    return safe.ljust(FILE_CELLS) if len(safe) <= FILE_CELLS else "…" + safe[1 - FILE_CELLS :]
