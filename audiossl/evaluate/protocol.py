"""Which clips train and which test a probe: by folds, by the split column, or by held-out groups.

A group (recording, speaker, place) is never on both sides: where a published division has one there
(four sources of ESC-50 lie in two folds), its clips are not trained on. Numbers are places in the
list of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audiossl.data.rows import Row
from audiossl.errors import UsageError

PROTOCOLS = ("folds", "split", "holdout")
INNER_FOLDS = 5  # for choices inside the training side

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """One division of the clips. `valid` is for choices; empty: the probe divides `train` itself.

    name: of the fold that is tested.
    crossing: number of clips left out, since their group is tested.
    """

    name: str
    train: Index
    test: Index
    valid: Index
    crossing: int = 0


def choose(rows: Sequence[Row], protocol: str = "auto") -> str:
    """The protocol itself, or of "auto": what the data bring with them.

    A test split comes first, then two or more folds, else groups are held out. Raises UsageError
    on an unknown name.
    """
    if protocol == "auto":
        tests = any(row.split == "test" for row in rows)
        return "split" if tests else "folds" if len(fold_names(rows)) > 1 else "holdout"
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol {protocol!r}: one of auto, {', '.join(PROTOCOLS)}")
    return protocol


def check(rows: Sequence[Row], protocol: str) -> None:
    """Raise UsageError when the rows lack what the protocol needs."""
    folds = len(fold_names(rows))
    if protocol == "folds" and folds < 2:
        raise UsageError(f"protocol folds: {folds} to test (column `fold`), two are needed")
    if protocol == "split" and not any(row.split == "test" for row in rows):
        raise UsageError("protocol split: no clip to test (column `split`)")


def fold_names(rows: Sequence[Row]) -> list[str]:
    """The folds that rows are of, sorted."""
    return sorted({row.fold for row in rows} - {""})


def lost(gone: Sequence[Row], left: Sequence[Row], protocol: str) -> list[str]:
    """Labels, folds and sides of the split that only rows in `gone` have, in words."""

    def parts(rows: Sequence[Row]) -> set[str]:
        found = {f"label {label}" for row in rows for label in row.labels}
        if protocol == "folds":
            found |= {f"fold {name}" for name in fold_names(rows)}
        if protocol == "split":
            found |= {f"split {row.split or 'train'}" for row in rows}
        return found

    return sorted(parts(gone) - parts(left))


def splits(rows: Sequence[Row], protocol: str, fraction: float, seed: int) -> list[Split]:
    """The divisions that `protocol` makes; only "holdout" depends on `fraction` and `seed`.

    folds: each is tested once, rows without a fold always train. split: as the column says, an
    empty cell trains. holdout: `fraction` of the groups of each label are tested, drawn at random,
    rare labels first. Raises UsageError when the rows lack what the protocol needs, or a side is
    empty.
    """
    check(rows, protocol)
    groups = group_numbers(rows)
    if protocol == "folds":
        folds = np.array([row.fold for row in rows])
        found = [
            _split(f"fold {name}", groups, folds != name, folds == name)
            for name in fold_names(rows)
        ]
    elif protocol == "split":
        parts = np.array([row.split or "train" for row in rows])
        found = [_split("test", groups, parts == "train", parts == "test", parts == "valid")]
    else:
        found = [_holdout(rows, groups, fraction, seed)]
    for split in found:
        if not len(split.train) or not len(split.test):
            sides = f"{len(split.train)} clips to train on and {len(split.test)} to test"
            raise UsageError(f"{split.name}: {sides} (groups are kept on one side)")
    return found


def group_numbers(rows: Sequence[Row]) -> Index:
    """(rows,) one number for all rows that share a group or a file, by way of others as well."""
    owner: dict[tuple[str, str], int] = {}
    parents = list(range(len(rows)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    for place, row in enumerate(rows):
        for key in (("group", row.group), ("file", row.name)):
            if key[1]:
                parents[root(place)] = root(owner.setdefault(key, place))
    return np.unique([root(place) for place in range(len(rows))], return_inverse=True)[1]


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


def _split(
    name: str,
    groups: Index,
    train: NDArray[np.bool_],
    test: NDArray[np.bool_],
    valid: NDArray[np.bool_] | None = None,
) -> Split:
    """From masks to places, without what would cross."""
    valid = np.zeros_like(test) if valid is None else valid
    held = valid & ~np.isin(groups, groups[test])
    kept = train & ~np.isin(groups, groups[test | held])
    lost = int((valid & ~held).sum() + (train & ~kept).sum())
    places = [np.flatnonzero(mask) for mask in (kept, test, held)]
    return Split(name, places[0], places[1], places[2], lost)


def _holdout(rows: Sequence[Row], groups: Index, fraction: float, seed: int) -> Split:
    rng = np.random.default_rng(seed)
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
    return _split(f"{fraction:g} of the groups", groups, ~out, out)
