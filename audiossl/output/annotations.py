"""Label tracks of other programs: Audacity, Raven selection tables, Praat TextGrid, CSV and TSV.

`write_*` gives text, `read_*` takes text, `read` takes a file. Times are seconds, frequencies Hz.
What a format cannot hold is lost on the way: Audacity and TextGrid know no score and no file name,
a TextGrid no overlap within one label. Labels stay one line: line breaks and tabs become spaces
where the format has no quoting. Bytes of a file name that are no UTF-8 are written as `\\xe9`:
what comes out is UTF-8 throughout.

Formats: Audacity manual, "Importing and Exporting Labels"; Praat manual, "TextGrid file formats";
Raven as exported by Raven Pro 1.6, columns in the order of BirdNET-Analyzer's tables.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from audiossl.errors import InputError, UsageError
from audiossl.output import tables, textgrid
from audiossl.output.records import SCORE_DIGITS, TIME_DIGITS
from audiossl.output.tables import corrupt, delimited, exactly, number, optional, readable, trimmed
from audiossl.output.textgrid import Tier

COLUMNS = ("file", "start", "end", "label", "score", "low", "high")  # of CSV and TSV
RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin File",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Annotation",
    "Begin Path",
    "File Offset (s)",
    "Score",
)
RAVEN_LABELS = ("Annotation", "Common Name", "Species", "Label", "Class")  # first found is read
RAVEN_SCORES = ("Score", "Confidence")
RAVEN_HIGH = 8000.0  # Hz: top of a box without limits, inside the band of nearly any recording
UNDEFINED = -1.0  # Hz: what Audacity writes for a limit that is not set

_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Annotation:
    """A label from `start` to `end` (seconds; equal for a point), in the band `low` to `high` (Hz).

    `score` in [0, 1]; `file`: path of the recording.
    """

    start: float
    end: float
    label: str
    score: float | None = None
    file: str | None = None
    low: float | None = None
    high: float | None = None


# Audacity


def write_audacity(annotations: Iterable[Annotation]) -> str:
    """An Audacity label track: the annotations of one file, one line each, two with a band."""
    return "".join(map(audacity_row, annotations))


def audacity_row(item: Annotation) -> str:
    """`start TAB end TAB label`, and a line `\\ TAB low TAB high` when a limit is known."""
    row = f"{item.start:.6f}\t{item.end:.6f}\t{_plain(item.label)}\n"
    if item.low is None and item.high is None:
        return row
    low, high = (UNDEFINED if limit is None else limit for limit in (item.low, item.high))
    return f"{row}\\\t{low:.6f}\t{high:.6f}\n"


def read_audacity(text: str) -> list[Annotation]:
    """Labels of an Audacity track; `time TAB label` is a point. Raises InputError with the line."""
    found: list[Annotation] = []
    for line, content in tables.lines(text):
        fields = content.split("\t")
        if fields[0] == "\\":
            if not found:
                raise corrupt(line, "a frequency line without a label before it")
            low, high = (_limit(field, line) for field in exactly(fields[1:], 2, line))
            found[-1] = replace(found[-1], low=low, high=high)
            continue
        if len(fields) == 2 and not tables.is_number(_point(fields[1])):
            fields.insert(1, fields[0])
        start, end, *label = fields if len(fields) > 1 else [content, ""]
        start, end = tables.span(_point(start), _point(end), line)
        found.append(Annotation(start, end, " ".join(label)))
    return found


# Raven


class RavenTable:
    """The rows of one selection table over one or more files, given in order, each to its end.

    Raven opens several files as one long sound: times count from the start of the first file, and
    `File Offset (s)` from the start of the row's own.
    """

    header = "\t".join(RAVEN_COLUMNS) + "\n"

    def __init__(self) -> None:
        self._selections = 0
        self._before = 0.0  # seconds of the files that are done

    def row(self, item: Annotation, high: float = RAVEN_HIGH) -> str:
        """One row. `high`: top of the box where the annotation has none, best half the rate."""
        self._selections += 1
        path = _plain(item.file or "")
        values = (
            str(self._selections),
            "Spectrogram 1",
            "1",
            os.path.basename(path),
            f"{self._before + item.start:.6f}",
            f"{self._before + item.end:.6f}",
            f"{item.low or 0.0:.3f}",
            f"{high if item.high is None else item.high:.3f}",
            _plain(item.label),
            path,
            f"{item.start:.6f}",
            "" if item.score is None else f"{item.score:.{SCORE_DIGITS}f}",
        )
        return "\t".join(values) + "\n"

    def end_file(self, seconds: float) -> None:
        """The rows that follow are of the next file; this one is `seconds` long."""
        self._before = round(self._before + seconds, TIME_DIGITS)


def write_raven(
    annotations: Iterable[Annotation],
    seconds: Mapping[str, float] | None = None,
    high: float = RAVEN_HIGH,
) -> str:
    """A selection table.

    `seconds`: length of every file in the order in which Raven will open them, also of those with
    nothing in them; a file that is not there follows, as long as its last annotation.
    """
    by_file: dict[str, list[Annotation]] = {name: [] for name in seconds or ()}
    for item in annotations:
        by_file.setdefault(item.file or "", []).append(item)
    table = RavenTable()
    parts = [table.header]
    for name, items in by_file.items():
        parts += [table.row(item, high) for item in items]
        last = max((item.end for item in items), default=0.0)
        table.end_file((seconds or {}).get(name, last))
    return "".join(parts)


def read_raven(text: str, label_column: str | None = None) -> list[Annotation]:
    """Selections of a table, with times in their own file where the table tells `File Offset (s)`.

    A selection that stands there twice, as waveform and as spectrogram, is read once.
    `label_column`: None takes the first of RAVEN_LABELS. Raises InputError with the line.
    """
    rows = _raven_rows(text)
    header = rows[0][1] if rows else {}
    wanted = (label_column,) if label_column else RAVEN_LABELS
    column = next((name for name in wanted if name in header), None)
    if rows and column is None:
        raise corrupt(1, f"no column {' or '.join(map(repr, wanted))}")
    boxes = {row.get("Selection") for _, row in rows if _is_box(row)}
    return [
        _selection(line, row, column or "")
        for line, row in rows
        if _is_box(row) or row.get("Selection") not in boxes
    ]


def _raven_rows(text: str) -> list[tuple[int, dict[str, str]]]:
    head, *rows = tables.lines(text) or [(1, "")]
    header = [name.strip() for name in head[1].split("\t")]
    for name in ("Begin Time (s)", "End Time (s)"):
        if name not in header:
            raise corrupt(head[0], f"no column {name!r}")
    return [
        (line, dict(zip(header, exactly(content.split("\t"), len(header), line), strict=True)))
        for line, content in rows
    ]


def _is_box(row: Mapping[str, str]) -> bool:
    return not row.get("View", "").startswith("Waveform")


def _selection(line: int, row: Mapping[str, str], column: str) -> Annotation:
    start, end = tables.span(row["Begin Time (s)"], row["End Time (s)"], line)
    offset = optional(row.get("File Offset (s)"), line)
    if offset is not None:
        start, end = offset, round(offset + (end - start), TIME_DIGITS)
    score = next((row[name] for name in RAVEN_SCORES if name in row), None)
    return Annotation(
        start,
        end,
        row[column],
        optional(score, line),
        row.get("Begin Path") or row.get("Begin File") or None,
        optional(row.get("Low Freq (Hz)"), line),
        optional(row.get("High Freq (Hz)"), line),
    )


# CSV and TSV


def write_csv(annotations: Iterable[Annotation], delimiter: str = ",") -> str:
    """A table with the header COLUMNS."""
    rows = (csv_row(item, delimiter) for item in annotations)
    return delimited(COLUMNS, delimiter) + "".join(rows)


def csv_row(item: Annotation, delimiter: str = ",") -> str:
    """One row of COLUMNS."""
    limits = [None if limit is None else trimmed(limit, 3) for limit in (item.low, item.high)]
    score = None if item.score is None else trimmed(item.score, SCORE_DIGITS)
    times = [trimmed(time, TIME_DIGITS) for time in (item.start, item.end)]
    return delimited([item.file, *times, item.label, score, *limits], delimiter)


def read_csv(text: str, delimiter: str = ",") -> list[Annotation]:
    """Rows of a table that has the columns start, end and label; other COLUMNS are optional.

    Rows without a label (nothing known, or an error) are left out. Raises InputError with the line.
    """
    reader = csv.reader(
        io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=delimiter, strict=True
    )
    found: list[Annotation] = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in ("start", "end", "label") if name not in header]
        if missing:
            raise corrupt(1, f"no column {missing[0]!r}")
        for fields in reader:
            if fields:
                line = reader.line_num
                row = dict(zip(header, exactly(fields, len(header), line), strict=True))
                found += _csv_annotation(row, line)
    except csv.Error as error:
        raise corrupt(reader.line_num, str(error)) from error
    return found


def write_tsv(annotations: Iterable[Annotation]) -> str:
    """As `write_csv`, with tabs."""
    return write_csv(annotations, "\t")


def read_tsv(text: str) -> list[Annotation]:
    """As `read_csv`, with tabs."""
    return read_csv(text, "\t")


def _csv_annotation(row: Mapping[str, str], line: int) -> list[Annotation]:
    if not row["label"]:
        return []
    start, end = tables.span(row["start"], row["end"], line)
    score, low, high = (optional(row.get(name), line) for name in ("score", "low", "high"))
    return [Annotation(start, end, row["label"], score, row.get("file") or None, low, high)]


# Praat TextGrid


def write_textgrid(annotations: Iterable[Annotation], seconds: float = 0.0) -> str:
    """A TextGrid of one file that is `seconds` long: one tier a label, named after it.

    Annotations of one label that overlap become one; points go to a point tier of that name.
    Without annotations there is one empty tier: Praat makes no TextGrid without any.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    for item in annotations:
        span = round(item.start, TIME_DIGITS), round(item.end, TIME_DIGITS)
        spans.setdefault(_one_line(item.label), []).append(span)
    times = [time for group in spans.values() for span in group for time in span]
    tiers = [tier for label, group in spans.items() for tier in _tiers(label, group)]
    return textgrid.write(tiers or [Tier("labels", ())], min([0, *times]), max([seconds, *times]))


def read_textgrid(text: str) -> list[Annotation]:
    """Texts of all intervals and points of a TextGrid. Raises InputError with the line."""
    tiers = textgrid.read(text)
    return [Annotation(start, end, label) for tier in tiers for start, end, label in tier.items]


def _tiers(label: str, spans: list[tuple[float, float]]) -> list[Tier]:
    """An interval tier and a point tier, each only if there is something in it."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    points = sorted({span for span in spans if span[0] == span[1]})
    tiers = [
        Tier(label, tuple((start, end, label) for start, end in joined)),
        Tier(label, tuple((start, end, label) for start, end in points), points=True),
    ]
    return [tier for tier in tiers if tier.items]


# Files

READERS: dict[str, Callable[[str], list[Annotation]]] = {
    "audacity": read_audacity,
    "raven": read_raven,
    "textgrid": read_textgrid,
    "csv": read_csv,
    "tsv": read_tsv,
}
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path: str | os.PathLike[str], kind: str | None = None) -> list[Annotation]:
    """The annotations in a file. `kind`: one of READERS; None looks at the text.

    Raises InputError: "missing", "unreadable" or "corrupt", and UsageError for an unknown kind.
    """
    if kind is not None and kind not in READERS:
        raise UsageError(f"no label format {kind!r}: choose from {', '.join(READERS)}")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        code = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise InputError(error.strerror or str(error), code=code) from error
    text = decode(data)
    return READERS[kind or detect(text)](text)


def decode(data: bytes) -> str:
    """Text of a label file: UTF-8, or UTF-16 with its mark, as Praat writes it."""
    encoding = "utf-16" if data.startswith(_UTF16_MARKS) else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"not {encoding} text: {error.reason}", code="corrupt") from error


def detect(text: str) -> str:
    """Which of READERS `text` is for, by its first line."""
    first = next((content for _, content in tables.lines(text)), "")
    if "ooTextFile" in first:
        return "textgrid"
    if "Begin Time (s)" in first:
        return "raven"
    header = [name.strip('" ').lower() for name in re.split("[,\t]", first)]
    if "start" in header and "label" in header:
        return "tsv" if "\t" in first else "csv"
    return "audacity"


def _one_line(label: str) -> str:
    return _BREAKS.sub(" ", readable(label))


def _plain(label: str) -> str:
    """`label` for a format without quoting.

    A double quote in front goes: table readers (pandas, R) would take all up to the next one, be it
    lines below, for one field.
    """
    text = _one_line(label)
    return text.replace('"', "'") if text.startswith('"') else text


def _point(field: str) -> str:
    """Audacity writes and reads decimal commas where the system's language has them."""
    return field.replace(",", ".")


def _limit(field: str, line: int) -> float | None:
    value = number(_point(field), line)
    return None if value < 0 else value
