"""Label sets of well-known datasets, and how their classes are called in the AudioSet ontology.

`load("esc50")` gives the classes of a set in its own order; `ontology` is the tree above them.
Where each list comes from and under which licence is in `sources.json` (`sources()`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from audiossl.errors import UsageError
from audiossl.labels import ontology
from audiossl.labels.ontology import ancestors, descendants, find, matches

__all__ = [
    "LabelEntry",
    "ancestors",
    "descendants",
    "find",
    "load",
    "matches",
    "ontology",
    "sets",
    "sources",
    "to_audioset",
]

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class LabelEntry:
    """One class of a set.

    `index`: its number in the set; `name`: as the set spells it; `audioset`: the nearest AudioSet
    class, None where the ontology has none; `mid`: that class's id.
    """

    index: int
    name: str
    audioset: str | None
    mid: str | None


def sets() -> list[str]:
    """Names of the label sets here."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


@cache
def sources() -> Mapping[str, Mapping[str, object]]:
    """Title, source, licence, attribution and changes of every list."""
    return json.loads((FOLDER / "sources.json").read_text(encoding="utf-8"))


def load(name: str) -> list[LabelEntry]:
    """The classes of set `name` in its order. Raises UsageError when there is no such set."""
    try:
        return list(_read(find(name, sets())))
    except UsageError as error:
        raise UsageError(f"no label set {name!r}: choose from {', '.join(sets())}") from error


def to_audioset(name: str, label: str) -> str | None:
    """The AudioSet class nearest to class `label` of set `name`; None when there is none.

    Raises UsageError with a suggestion on an unknown set or class.
    """
    entries = {entry.name: entry for entry in load(name)}
    return entries[find(label, list(entries))].audioset


@cache
def _read(name: str) -> tuple[LabelEntry, ...]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_entry(row) for row in csv.DictReader(file))


def _entry(row: dict[str, str]) -> LabelEntry:
    if "mid" in row:
        return LabelEntry(int(row["index"]), row["display_name"], row["display_name"], row["mid"])
    nearest = row["audioset"] or None
    return LabelEntry(int(row["index"]), row["name"], nearest, nearest and ontology.mid(nearest))
