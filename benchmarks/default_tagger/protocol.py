"""Splits that no recording crosses, the tables they are trained from, and what is measured.

Split k (1-4) leaves out ESC-10's fold k, UrbanSound8K's fold 1 (odd k) or 2 (even k), the
Philharmonia notes, speakers and formulas of fold k, and the packages in sounds.HELD_OUT: from the
labels and from distillation. Two splits with the same UrbanSound8K fold share one distillation,
which hears neither's fold: less than the protocol allows, and half the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sounds
from bank import part_of
from labels import ESC10, LABELS, URBANSOUND8K, judge
from teacher import classes

from audiossl.data import manifest
from audiossl.data.rows import Row

SPLITS = (1, 2, 3, 4)
HALVES = {"odd": (1, 3), "even": (2, 4), "all": ()}  # splits that share one distillation
COPIES = {"esc10": 4, "urbansound8k": 2, "silence": 30}  # times that a clip stands in the table
OTHERS = 2  # of the sounds that no data set names, every second one is enough


@dataclass(frozen=True)
class Measured:
    """A data set of the protocol: its name and the labels that its classes have here."""

    name: str
    labels: dict[str, str]


MEASURED = (Measured("esc10", ESC10), Measured("urbansound8k", URBANSOUND8K))


def left_out(split: int | None) -> set[str]:
    """Parts of the bank that split k never hears; None: the model that ships hears everything."""
    if split is None:
        return set()
    return {f"esc10-{split}", f"urbansound8k-{2 - split % 2}", f"notes-{split}", "held_out"}


def clip_part(clip: dict[str, str]) -> str:
    return part_of(clip["source"], int(clip["fold"]))


def is_test(clip: dict[str, str], split: int) -> bool:
    return clip_part(clip) in left_out(split)


def write_bank(
    out: Path, name: str, parts: list[str], share: dict[str, float] | None = None
) -> Path:
    """Join parts into one table, OUT/bank/NAME.csv.

    share: fraction of a part's segments that is taken, evenly spaced (1 where nothing is said).
    """
    share = share or {}
    rows = []
    for part in parts:
        segments = sorted((out / "segments" / part).glob("*.wav"))
        chosen = np.linspace(0, len(segments) - 1, round(len(segments) * share.get(part, 1.0)))
        rows += [Row(segments[i], group=part) for i in chosen.astype(int)]
    path = out / "bank" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    manifest.write(path, rows, root=out)
    return path


def sides(name: str, clips: list[dict[str, str]], split: int) -> tuple[list[int], list[int]]:
    """(training, test) clips of a measured set; a recording on the test side is in no training."""
    rows = [i for i, clip in enumerate(clips) if clip["source"] == name]
    tested = [i for i in rows if is_test(clips[i], split)]
    groups = {clips[i]["group"] for i in tested}
    return [i for i in rows if clips[i]["group"] not in groups], tested


def write_clips(out: Path, data: Path, clips: list[dict[str, str]], split: int | None) -> Path:
    """The table of labelled clips that split k trains on."""
    scores = np.load(out / "heard.npz")["scores"]
    names = classes(data / "teachers")
    columns = {label: names.index(label) for label in LABELS if label in names}
    tested = {clip["group"] for clip in clips if split is not None and is_test(clip, split)}
    rows = []
    for number, (clip, heard) in enumerate(zip(clips, scores, strict=True)):
        if clip["group"] in tested or (clip["category"] == "other" and number % OTHERS):
            continue
        told = {label: float(heard[column]) for label, column in columns.items()}
        present, judged = judge(clip["source"], clip["category"], told)
        if not judged:
            continue
        row = Row(
            out / clip["path"],
            labels=tuple(sorted(present)),
            known=tuple(label for label in LABELS if label in judged),
            group=clip["group"],
        )
        rows += [row] * COPIES.get(clip["source"], 1)
    path = out / "splits" / f"{split or 'all'}.csv"
    path.parent.mkdir(exist_ok=True)
    manifest.write(path, rows, root=out)
    return path


def sources() -> list[dict[str, str]]:
    """Name and licence of everything the weights are made from, for config.json."""
    return [{"name": name, "licence": licence} for name, licence in sounds.LICENCES.items()]
