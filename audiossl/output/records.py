"""Typed results: what the Python API returns and the commands print, one record per finished item.

`to_dict()` gives the JSON form (documented in `audiossl/schema.json`): fields may be added in later
versions, none renamed. `rows()` turns that form into rows of a table with the columns `COLUMNS`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

SCORE_DIGITS = 4  # decimals: finer than any calibration here, coarse enough to hide rounding noise
TIME_DIGITS = 6  # decimals of a second: one sample at 1 MHz


def file_fields(file: str) -> dict[str, str]:
    """`file`, and `file_b64` when the name is not valid UTF-8 (bytes kept by surrogateescape)."""
    try:
        file.encode("utf-8")
        return {"file": file}
    except UnicodeEncodeError:
        raw = file.encode("utf-8", "surrogateescape")
        return {"file": raw.decode("utf-8", "replace"), "file_b64": base64.b64encode(raw).decode()}


def full_name(record: Mapping[str, Any]) -> str:
    """The name of a record's file, with all its bytes: what `file_fields` was given."""
    if "file_b64" in record:
        return os.fsdecode(base64.b64decode(record["file_b64"]))
    return record["file"]


@dataclass(frozen=True)
class Label:
    """One label and its score in [0, 1]."""

    label: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.label, "score": round(self.score, SCORE_DIGITS)}


@dataclass(frozen=True)
class TagRecord:
    """The labels of one window of one file (of the whole file without `--hop`).

    `labels` holds those at or above the threshold, highest first; empty means that the model knows
    nothing it would stand by, and then `best` is the label that came nearest.
    `start`, `end`: seconds in the file.
    """

    COLUMNS: ClassVar = ("file", "start", "end", "label", "score", "model", "error")

    file: str
    start: float
    end: float
    labels: tuple[Label, ...]
    model: str
    best: Label | None = None

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            **file_fields(self.file),
            "start": round(self.start, TIME_DIGITS),
            "end": round(self.end, TIME_DIGITS),
            "labels": [label.to_dict() for label in self.labels],
            "model": self.model,
        }
        if not self.labels and self.best is not None:
            record["best"] = self.best.to_dict()
        return record

    @staticmethod
    def rows(record: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """One row a label of a record in its JSON form; one without a label if there is none."""
        place = (full_name(record), record["start"], record["end"])
        for item in record["labels"] or [{"label": "", "score": ""}]:
            yield (*place, item["label"], item["score"], record["model"], "")


@dataclass(frozen=True, eq=False)
class EmbedRecord:
    """The embedding of one window or token of one file, or of the whole file.

    `start`, `end`: seconds in the file; `embedding`: (dim,) float32 or float16, all finite.
    """

    file: str
    start: float
    end: float
    embedding: np.ndarray
    model: str

    @staticmethod
    def columns(dim: int) -> tuple[str, ...]:
        """Columns of a table of vectors of `dim` numbers: these come last, as e0, e1 ..."""
        return ("file", "start", "end", "model", "error", *(f"e{k}" for k in range(dim)))

    @staticmethod
    def rows(record: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """The one row of a record as `to_row` gives it."""
        place = (full_name(record), record["start"], record["end"], record["model"], "")
        yield (*place, *decimals(record["embedding"]))

    def to_row(self) -> dict[str, Any]:
        """As `to_dict`, the embedding still an array."""
        return {
            **file_fields(self.file),
            "start": round(self.start, TIME_DIGITS),
            "end": round(self.end, TIME_DIGITS),
            "embedding": self.embedding,
            "model": self.model,
        }

    def to_dict(self) -> dict[str, Any]:
        row = self.to_row()
        return {**row, "embedding": [float(text) for text in decimals(self.embedding)]}


def decimals(vector: np.ndarray) -> list[str]:
    """The shortest decimals that read back as the same numbers of the vector's own type."""
    return vector.astype(str).tolist()


@dataclass(frozen=True)
class ErrorRecord:
    """An input that could not be done, in the same stream and the same order as the results."""

    file: str
    code: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        return {
            **file_fields(self.file),
            "error": {"code": self.code, "message": self.message},
        }
