"""Which clips train and which test a probe: by folds, by the split column, or by held-out groups.

A group (recording, speaker, place) is never on both sides. Numbers are places in the list of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audiossl.data import manifest
from audiossl.data.manifest import Row
from audiossl.errors import UsageError

PROTOCOLS = ("folds", "split", "holdout")
INNER_FOLDS = 5  # for choices inside the training side

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """One division of the clips. `valid` is for choices; empty: the probe divides `train` itself.

    `name` is the fold that is tested.
    """

    name: str
    train: Index
    test: Index
    valid: Index


def choose(rows: Sequence[Row], protocol: str = "auto") -> str:
    """The protocol itself, or of "auto": what the data bring with them.

    A test split comes first, then two or more folds, else groups are held out. Raises UsageError
    when the rows lack what the protocol needs.
    """
    folds = {row.fold for row in rows} - {""}
    tests = any(row.split == "test" for row in rows)
    if protocol == "auto":
        return "split" if tests else "folds" if len(folds) > 1 else "holdout"
    if protocol == "folds" and len(folds) < 2:
        raise UsageError(f"protocol folds: the column `fold` names {len(folds)}, two are needed")
    if protocol == "split" and not tests:
        raise UsageError("protocol split: no row of the column `split` says test")
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r}: one of auto, {', '.join(PROTOCOLS)}")
    return protocol


def splits(rows: Sequence[Row], protocol: str, fraction: float, seed: int) -> list[Split]:
    """The divisions that `protocol` makes; only "holdout" depends on `fraction` and `seed`.

    folds: each is tested once, rows without a fold always train. split: as the column says, an
    empty cell trains. holdout: `fraction` of the groups of each label are tested, drawn at random,
    rare labels first. Raises UsageError when a side is empty or a group would cross.
    """
    if protocol == "folds":
        folds = np.array([row.fold for row in rows])
        names = sorted(set(folds) - {""})
        found = [_split(f"fold {name}", folds != name, folds == name) for name in names]
    elif protocol == "split":
        parts = np.array([row.split or "train" for row in rows])
        found = [_split("test", parts == "train", parts == "test", parts == "valid")]
    else:
        found = [_holdout(rows, fraction, seed)]
    for split in found:
        sides = [[rows[i] for i in side] for side in (split.train, split.test, split.valid)]
        if not sides[0] or not sides[1]:
            raise UsageError(
                f"{split.name}: {len(sides[0])} clips to train and {len(sides[1])} to test"
            )
        manifest.check_disjoint(sides[0] + sides[2], sides[1])
        manifest.check_disjoint(sides[0], sides[2])
    return found


def group_numbers(rows: Sequence[Row]) -> Index:
    """(rows,) one number a group; a row without a group is one with the rows of its file."""
    names = [row.group or f"\0{row.path}" for row in rows]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def inner_folds(
    groups: Index, targets: NDArray[np.float32], seed: int
) -> list[tuple[Index, Index]]:
    """(train, valid) places inside a training side, for the choice of a hyperparameter.

    groups: (clips,); targets: (clips, classes). Groups of each class go round the folds in random
    order, so where clips have one label, every class is in every training part. Empty when some
    class has a single group.
    """
    rng = np.random.default_rng(seed)
    fold_of: dict[int, int] = {}
    fewest = INNER_FOLDS
    for column in (targets > 0).T:
        own = rng.permutation(np.unique(groups[column]))
        if len(own):
            fewest = min(fewest, len(own))
        free = [group for group in own if group not in fold_of]
        fold_of |= {group: place for place, group in enumerate(free)}
    if fewest < 2:
        return []
    fold = np.array([fold_of.get(group, group) for group in groups]) % fewest
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(fewest)]


def _split(name: str, *masks: NDArray[np.bool_]) -> Split:
    """From masks of train, test and perhaps valid."""
    train, test, *valid = (np.flatnonzero(mask) for mask in masks)
    return Split(name, train, test, valid[0] if valid else np.zeros(0, np.int64))


def _holdout(rows: Sequence[Row], fraction: float, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    groups = group_numbers(rows)
    members: dict[str, set[int]] = {}
    for row, group in zip(rows, groups, strict=True):
        for label in row.labels or ("",):
            members.setdefault(label, set()).add(int(group))
    tested: set[int] = set()
    placed: set[int] = set()
    for label in sorted(members, key=lambda name: (len(members[name]), name)):
        free = rng.permutation(sorted(members[label] - placed))
        count = min(max(1, round(fraction * len(free))), len(free) - 1) if len(free) > 1 else 0
        tested.update(int(group) for group in free[:count])
        placed |= members[label]
    out = np.isin(groups, sorted(tested))
    return _split(f"{fraction:g} of the groups", ~out, out)
