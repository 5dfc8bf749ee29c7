"""Records (dicts, as `to_dict()` or `to_row()` give them) to text: one writer a format.

A writer is fed one input after the other and gives text to append, so that results flow:
`begin() record(...)... end_file() end()`.

All of it is UTF-8. Of a name that is not, JSON has the bytes in `file_b64`; tables and label tracks
have those that are no UTF-8 as `\\xe9`, so that any program reads them.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import audiossl.output.annotations as label_tracks
from audiossl.atomic import atomic_write
from audiossl.audio.names import STDIN
from audiossl.errors import InputError
from audiossl.output.annotations import Annotation
from audiossl.output.records import EmbedRecord, TagRecord, decimals, full_name
from audiossl.output.tables import delimited

if TYPE_CHECKING:
    from audiossl.audio.formats import AudioInfo

Record = dict[str, Any]
Rows = Callable[[Record], Iterable[Sequence[Any]]]


class Inputs(Protocol):
    """The records of one input after the other; may be read again."""

    def __iter__(self) -> Iterator[Iterable[Record]]: ...


class Writer(Protocol):
    """A format: `suffix` of its files, and how the records of a run become one."""

    @property
    def suffix(self) -> str: ...

    def files(self, path: Path) -> list[Path]:
        """What `write` makes: `path`, and what stands beside it."""
        ...

    def write(self, path: Path, inputs: Inputs) -> None: ...


class TextWriter(ABC):
    """A text format: `begin`, `record` for each, `end_file` behind an input's last, `end`."""

    suffix: str

    def begin(self) -> str:
        return ""

    @abstractmethod
    def record(self, record: Record) -> str:
        """What a record adds to the text."""

    def end_file(self) -> str:
        return ""

    def end(self) -> str:
        return ""

    def files(self, path: Path) -> list[Path]:
        return [path]

    def write(self, path: Path, inputs: Inputs) -> None:
        """The text of all inputs to `path`, whole or not at all. Raises OutputError."""
        with atomic_write(path) as file:
            file.write(encoded(self.begin()))
            for records in inputs:
                for record in records:
                    file.write(encoded(self.record(record)))
                file.write(encoded(self.end_file()))
            file.write(encoded(self.end()))


class JsonLines(TextWriter):
    """One JSON object a line."""

    suffix = ".jsonl"

    def record(self, record: Record) -> str:
        return json_text(record) + "\n"


def encoded(text: str) -> bytes:
    """Text as UTF-8; a stray byte of a name (in a message) as `\\udce9`, which is JSON as well."""
    return text.encode("utf-8", "backslashreplace")


def json_text(record: Record) -> str:
    """A record as one line of JSON; an embedding that is an array comes last."""
    vector = record.get("embedding")
    if vector is None:
        return json.dumps(record, ensure_ascii=False)
    rest = {key: value for key, value in record.items() if key != "embedding"}
    numbers = ", ".join(decimals(vector))
    return f'{json.dumps(rest, ensure_ascii=False)[:-1]}, "embedding": [{numbers}]}}'


class Json(TextWriter):
    """One JSON array."""

    suffix = ".json"

    def __init__(self) -> None:
        self._separator = "[\n"

    def record(self, record: Record) -> str:
        text = self._separator + json_text(record)
        self._separator = ",\n"
        return text

    def end(self) -> str:
        return "[]\n" if self._separator == "[\n" else "\n]\n"


class Separated(TextWriter):
    """CSV or TSV: a header, the rows of each record, and a row for each input that failed.

    columns: names, among them "file" and "error".
    rows: gives a record's rows, each as long as `columns`.
    """

    def __init__(self, columns: Sequence[str], rows: Rows, delimiter: str, suffix: str) -> None:
        self.suffix = suffix
        self._columns, self._rows, self._delimiter = columns, rows, delimiter

    def begin(self) -> str:
        return delimited(self._columns, self._delimiter)

    def record(self, record: Record) -> str:
        if "error" in record:
            cells = {"file": full_name(record), "error": error_text(record)}
            rows = [[cells.get(name, "") for name in self._columns]]
        else:
            rows = self._rows(record)
        return "".join(delimited(row, self._delimiter) for row in rows)


def error_text(record: Record) -> str:
    """What went wrong, by an error record."""
    return f"{record['error']['code']}: {record['error']['message']}"


class Tracks(TextWriter):
    """Annotations of one input at a time, written when it is done; windows are merged."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._annotations: list[Annotation] = []
        self._seconds = 0.0
        self._file: str | None = None
        self._damaged = False

    def record(self, record: Record) -> str:
        if "error" in record:
            self._damaged = True
        else:
            self._file = full_name(record)
            self._seconds = max(self._seconds, record["end"])
            self._annotations += record_annotations(record)
        return ""

    def end_file(self) -> str:
        text = "" if self._file is None else self.track(merged(self._annotations))
        self._clear()
        return text

    @abstractmethod
    def track(self, tracks: list[Annotation]) -> str:
        """The text of one input."""

    def extent(self) -> tuple[float, float]:
        """How far the input reaches: seconds, and Hz.

        Its last window may end before it does (with a hop longer than the window), so the file is
        asked, where it is one; what the header of a damaged one says is not believed.
        """
        header = header_of(self._file or STDIN)
        if header is None:
            return self._seconds, label_tracks.RAVEN_HIGH
        claimed = 0.0 if self._damaged else header.seconds or 0.0
        return max(self._seconds, claimed), header.rate / 2


def header_of(name: str) -> AudioInfo | None:
    """What the header of the file of this name says; None where there is none to ask: a pipe, raw
    samples, a name that was given to standard input."""
    if name == STDIN or not os.path.isfile(name):
        return None
    from audiossl.audio import reading as audio  # only these formats need what decodes

    try:
        return audio.info(name)
    except InputError:
        return None


class Audacity(Tracks):
    """A label track: one document an input."""

    suffix = ".txt"

    def track(self, tracks: list[Annotation]) -> str:
        return label_tracks.write_audacity(tracks)


class TextGrid(Tracks):
    """Praat's long form: one document an input."""

    suffix = ".TextGrid"

    def track(self, tracks: list[Annotation]) -> str:
        seconds, _high = self.extent()
        return label_tracks.write_textgrid(tracks, seconds)


class Raven(Tracks):
    """One selection table over all inputs, as Raven opens several files in a row."""

    suffix = ".selections.txt"

    def begin(self) -> str:
        self._table = label_tracks.RavenTable()
        return self._table.header

    def track(self, tracks: list[Annotation]) -> str:
        seconds, high = self.extent()
        rows = "".join(self._table.row(item, high) for item in tracks)
        self._table.end_file(seconds)
        return rows


def record_annotations(record: Record) -> list[Annotation]:
    """The labels of a tag record as annotations."""
    place, file = (record["start"], record["end"]), full_name(record)
    return [Annotation(*place, item["label"], item["score"], file) for item in record["labels"]]


def merged(tracks: list[Annotation]) -> list[Annotation]:
    """Touching or overlapping annotations of one label become one, with the highest score."""
    out: list[Annotation] = []
    latest: dict[tuple[str | None, str], int] = {}
    for item in sorted(tracks, key=lambda item: (item.start, item.end, item.label)):
        at = latest.get((item.file, item.label))
        if at is not None and item.start <= out[at].end:
            old = out[at]
            score = max(old.score or 0.0, item.score or 0.0)
            end = max(old.end, item.end)
            out[at] = Annotation(old.start, end, old.label, score, old.file, old.low, old.high)
        else:
            latest[item.file, item.label] = len(out)
            out.append(item)
    return out


FORMATS: dict[str, Callable[[], TextWriter]] = {
    "jsonl": JsonLines,
    "json": Json,
    "csv": lambda: Separated(TagRecord.COLUMNS, TagRecord.rows, ",", ".csv"),
    "tsv": lambda: Separated(TagRecord.COLUMNS, TagRecord.rows, "\t", ".tsv"),
    "audacity": Audacity,
    "raven": Raven,
    "textgrid": TextGrid,
}
EMBED_TEXTS: dict[str, Callable[[int], TextWriter]] = {  # by the vectors' number of numbers
    "jsonl": lambda _dim: JsonLines(),
    "json": lambda _dim: Json(),
    "csv": lambda dim: Separated(EmbedRecord.columns(dim), EmbedRecord.rows, ",", ".csv"),
}
ONE_DOCUMENT_A_FILE = frozenset({"audacity", "textgrid"})
