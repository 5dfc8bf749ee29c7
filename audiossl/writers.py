"""Records (dicts, as `to_dict()` gives them) to text: one writer a format.

A writer is fed one input after the other and gives text to append, so that results flow:
`begin() file(record...) end_file() end()`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import audiossl.annotations as label_tracks
from audiossl.annotations import Annotation

Record = dict[str, Any]
TAG_COLUMNS = ("file", "start", "end", "label", "score", "model", "error")


class JsonLines:
    """One JSON object a line."""

    suffix = ".jsonl"

    def begin(self) -> str:
        return ""

    def record(self, record: Record) -> str:
        return json.dumps(record, ensure_ascii=False) + "\n"

    def end_file(self) -> str:
        return ""

    def end(self) -> str:
        return ""


class Json(JsonLines):
    """One JSON array."""

    suffix = ".json"

    def __init__(self) -> None:
        self._separator = "[\n"

    def record(self, record: Record) -> str:
        text = self._separator + json.dumps(record, ensure_ascii=False)
        self._separator = ",\n"
        return text

    def end(self) -> str:
        return "[]\n" if self._separator == "[\n" else "\n]\n"


class Separated(JsonLines):
    """CSV or TSV: one row a label; a window without labels and an error have a row as well."""

    def __init__(self, delimiter: str, suffix: str) -> None:
        self.suffix = suffix
        self._delimiter = delimiter

    def begin(self) -> str:
        return self._row(TAG_COLUMNS)

    def record(self, record: Record) -> str:
        return "".join(self._row(row) for row in tag_rows(record))

    def _row(self, values: tuple[Any, ...]) -> str:
        return label_tracks.delimited(values, self._delimiter)


def tag_rows(record: Record) -> list[tuple[Any, ...]]:
    """Rows of TAG_COLUMNS for one record."""
    if "error" in record:
        error = record["error"]
        return [(record["file"], "", "", "", "", "", f"{error['code']}: {error['message']}")]
    place = (record["file"], record["start"], record["end"])
    labels = record["labels"] or [{"label": "", "score": ""}]
    return [(*place, item["label"], item["score"], record["model"], "") for item in labels]


class Tracks(JsonLines, ABC):
    """Annotations of one input at a time, written when it is done; windows are merged."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._annotations: list[Annotation] = []
        self._seconds = 0.0
        self._seen = False

    def record(self, record: Record) -> str:
        if "error" not in record:
            self._seen = True
            self._seconds = max(self._seconds, record["end"])
            self._annotations += record_annotations(record)
        return ""

    def end_file(self) -> str:
        text = self.track(merged(self._annotations), self._seconds) if self._seen else ""
        self._clear()
        return text

    @abstractmethod
    def track(self, tracks: list[Annotation], seconds: float) -> str:
        """The text of one input of `seconds`."""


class Audacity(Tracks):
    """A label track: one document an input."""

    suffix = ".txt"

    def track(self, tracks: list[Annotation], seconds: float) -> str:
        return label_tracks.write_audacity(tracks)


class TextGrid(Tracks):
    """Praat's long form: one document an input."""

    suffix = ".TextGrid"

    def track(self, tracks: list[Annotation], seconds: float) -> str:
        return label_tracks.write_textgrid(tracks, seconds)


class Raven(Tracks):
    """One selection table over all inputs, as Raven opens several files in a row."""

    suffix = ".selections.txt"

    def begin(self) -> str:
        self._table = label_tracks.RavenTable()
        return self._table.header

    def track(self, tracks: list[Annotation], seconds: float) -> str:
        rows = "".join(self._table.row(item) for item in tracks)
        self._table.end_file(seconds)
        return rows


def record_annotations(record: Record) -> list[Annotation]:
    """The labels of a tag record as annotations."""
    return [
        Annotation(record["start"], record["end"], item["label"], item["score"], record["file"])
        for item in record["labels"]
    ]


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


FORMATS: dict[str, Callable[[], JsonLines]] = {
    "jsonl": JsonLines,
    "json": Json,
    "csv": lambda: Separated(",", ".csv"),
    "tsv": lambda: Separated("\t", ".tsv"),
    "audacity": Audacity,
    "raven": Raven,
    "textgrid": TextGrid,
}
ONE_DOCUMENT_A_FILE = frozenset({"audacity", "textgrid"})
