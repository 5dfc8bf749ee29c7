"""What an evaluation says: one record a metric, and the formats it is written in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from audiossl.output.writers import Json, JsonLines, Record, Separated, TextWriter

DIGITS = 4  # of a mean and its interval
COLUMNS = (
    *("data", "probe", "shots", "metric", "mean", "ci95_low", "ci95_high", "seeds", "folds"),
    *("clips", "protocol", "model", "file", "error"),
)


@dataclass(frozen=True)
class ProbeRecord:
    """One metric of one probe: its mean over folds and seeds with a 95 % interval.

    data: name of what was tested.
    probe: one of probes.NAMES.
    shots: clips a class to train on; None: all.
    metric: such as "accuracy" or "cmap".
    mean: over folds and seeds.
    ci95: the ends of the interval.
    seeds: repetitions.
    folds: test sets.
    clips: tested in all.
    protocol: what the folds are, one of protocol.PROTOCOLS.
    model: name of the model.
    """

    data: str
    probe: str
    shots: int | None
    metric: str
    mean: float
    ci95: tuple[float, float]
    seeds: int
    folds: int
    clips: int
    protocol: str
    model: str

    def to_dict(self) -> Record:
        return {
            "data": self.data,
            "probe": self.probe,
            "shots": self.shots,
            "metric": self.metric,
            "mean": round(self.mean, DIGITS),
            "ci95": [round(end, DIGITS) for end in self.ci95],
            "seeds": self.seeds,
            "folds": self.folds,
            "clips": self.clips,
            "protocol": self.protocol,
            "model": self.model,
        }

    @staticmethod
    def rows(record: Record) -> Iterator[tuple[Any, ...]]:
        """The one row of COLUMNS of a record in its JSON form, `shots` "all" for all."""
        low, high = record["ci95"]
        cells = {**record, "shots": said_shots(record), "ci95_low": low, "ci95_high": high}
        yield tuple(cells.get(name, "") for name in COLUMNS)


class ProbeTable(TextWriter):
    """For a person at a terminal: one line a probe and number of shots, a column a metric."""

    HEAD = f"{'probe':13} {'shots':>5}"
    CELL = 22

    def __init__(self) -> None:
        self._line: list[Record] = []
        self._head: list[str] = []

    def record(self, record: Record) -> str:
        if "error" in record:
            return ""  # told on stderr
        text = ""
        if self._line and key(record) != key(self._line[0]):
            text = self._flushed()
        self._line.append(record)
        return text

    def end(self) -> str:
        return self._flushed() if self._line else ""

    def _flushed(self) -> str:
        names = [record["metric"] for record in self._line]
        text = ""
        if names != self._head:
            self._head = names
            text = self.HEAD + "".join(f"  {name:{self.CELL}}" for name in names).rstrip() + "\n"
        first = self._line[0]
        cells = "".join(f"  {said_value(record):{self.CELL}}" for record in self._line).rstrip()
        text += f"{first['probe']:13} {said_shots(first):>5}{cells}\n"
        self._line = []
        return text


def key(record: Record) -> tuple[Any, ...]:
    """Records of one key are metrics of one probe."""
    return record["probe"], record["shots"]


def said_shots(record: Record) -> str:
    return "all" if record["shots"] is None else str(record["shots"])


def said_value(record: Record) -> str:
    low, high = record["ci95"]
    return f"{record['mean']:.3f} [{low:.3f}, {high:.3f}]"


FORMATS: dict[str, Callable[[], TextWriter]] = {
    "table": ProbeTable,
    "jsonl": JsonLines,
    "json": Json,
    "csv": lambda: Separated(COLUMNS, ProbeRecord.rows, ",", ".csv"),
    "tsv": lambda: Separated(COLUMNS, ProbeRecord.rows, "\t", ".tsv"),
}
