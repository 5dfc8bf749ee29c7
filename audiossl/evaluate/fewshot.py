"""Few-shot training sets: k clips a class, drawn from the training side.

The rules are those of Bird-MAE's few-shot sets of BirdSet (Rauch et al. 2025, arXiv 2504.12880, and
its public code): `strict` takes recordings of at most 5 s, `lenient` those of at most 20 s that
have one label only, `any` takes all. Different recordings come first; only a class with fewer than
k of them gets a second clip of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from audiossl.data.clip import clip_seconds
from audiossl.data.rows import Row
from audiossl.errors import InputError, UsageError

RULES = ("any", "lenient", "strict")
SECONDARY = "ebird_code_secondary"  # BirdSet's column of further birds in a recording
LENIENT_SECONDS, STRICT_SECONDS = 20.0, 5.0
ROUNDING = 1e-3  # seconds: encoders pad
NAMED = 20  # classes in a warning

Index = NDArray[np.int64]


def eligible(rows: Sequence[Row], rule: str) -> NDArray[np.bool_]:
    """(rows,) whether a row may be drawn: by the length of its recording, and its labels.

    Raises UsageError on an unknown rule.
    """
    if rule not in RULES:
        raise UsageError(f"rule {rule!r}: one of {', '.join(RULES)}")
    if rule == "any":
        return np.ones(len(rows), bool)
    limit = STRICT_SECONDS if rule == "strict" else LENIENT_SECONDS
    lengths: dict[str, float] = {}
    for row in rows:
        if row.name not in lengths:
            lengths[row.name] = recording_seconds(row)
    short = np.array([lengths[row.name] <= limit + ROUNDING for row in rows], bool)
    if rule == "strict":
        return short
    alone = [len(row.labels) == 1 and not row.extra.get(SECONDARY) for row in rows]
    return short & np.array(alone, bool)


def recording_seconds(row: Row) -> float:
    """Length of the whole file; infinite when it cannot be read."""
    try:
        return clip_seconds(replace(row, start=None, end=None))
    except InputError:
        return float("inf")


def draw(
    targets: NDArray[np.float32], recordings: Index, allowed: Index, shots: int, seed: int
) -> Index:
    """Places of up to `shots` clips of each class among the `allowed` ones, sorted.

    targets: (clips, classes); recordings: (clips,). A clip with several labels may be drawn for any
    of them, so a class can have more. The draw for k is part of the draw for k + 1 of one seed.
    """
    chosen: set[int] = set()
    for column in range(targets.shape[1]):
        rng = np.random.default_rng((seed, column))
        members = rng.permutation(allowed[targets[allowed, column] > 0])
        chosen.update(int(place) for place in _recordings_first(members, recordings)[:shots])
    return np.array(sorted(chosen), np.int64)


def scarce(
    targets: NDArray[np.float32], labels: Sequence[str], sides: Sequence[Index], wanted: int
) -> str:
    """Classes of which some training side has fewer than `wanted` clips: `dog (3), cat (0)`, with
    the least there are.

    targets: (clips, classes); sides: places of clips.
    """
    least = np.min([(targets[side] > 0).sum(axis=0) for side in sides], axis=0)
    found = zip(labels, least, strict=True)
    names = [f"{label} ({count})" for label, count in found if count < wanted]
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join(names[:NAMED] + more)


def _recordings_first(members: Index, recordings: Index) -> Index:
    """The same clips, the first of each recording in front."""
    first = np.zeros(len(members), bool)
    first[np.unique(recordings[members], return_index=True)[1]] = True
    return np.concatenate([members[first], members[~first]])
