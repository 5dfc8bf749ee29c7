"""Rows in two: those that train and those that are evaluated, with no group on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from audiossl.data.rows import Row, group_of
from audiossl.errors import UsageError


def split(
    rows: Sequence[Row],
    valid_folds: Sequence[str] = (),
    valid_fraction: float = 0.0,
    *,
    train_folds: Sequence[str] = (),
    valid_split: str = "valid",
    crossing: str = "error",
) -> tuple[list[Row], list[Row]]:
    """(train, valid) rows: by folds, by a fraction of the groups, or by the `split` column.

    Evaluated are rows of the `valid_folds`, or of a fraction of the groups, or else of the
    `valid_split`; trained on are the others that have split "train" or none, of the `train_folds`
    if any are named. The fraction goes by a hash of the group's name, so a row added later moves no
    other row. `crossing`: what to do with groups on both sides, see `apart`.
    Raises UsageError when a fold does not exist or a group crosses.
    """
    pool = [row for row in rows if row.split != "test"]
    _check_folds(pool, [*valid_folds, *train_folds])
    if valid_folds:
        valid = [row for row in pool if row.fold in valid_folds]
    elif valid_fraction:
        valid = [row for row in pool if _share(group_of(row)) < valid_fraction]
    else:
        valid = [row for row in rows if row.split == valid_split]
    evaluated = {id(row) for row in valid}
    train = [
        row
        for row in pool
        if row.split != "valid"
        and id(row) not in evaluated
        and (not train_folds or row.fold in train_folds)
    ]
    return apart(train, valid, crossing), valid


def apart(train: Sequence[Row], valid: Sequence[Row], crossing: str = "error") -> list[Row]:
    """The training rows, given what may be done with groups that are evaluated as well.

    error: nothing. drop: their training rows are left out. keep: they stay, as a published split
    may have it. Raises UsageError, whatever `crossing` says, when a file is on both sides.
    """
    train = list(train)
    if crossing == "drop":
        evaluated = {row.group for row in valid} - {""}
        train = [row for row in train if row.group not in evaluated]
    elif crossing == "error" and (problem := _crossing_groups(train, valid)):
        raise UsageError(
            f"{problem} (data.crossing: drop leaves them out of training, keep does not)"
        )
    if problem := _crossing_files(train, valid):
        raise UsageError(problem)
    return train


def _check_folds(rows: Sequence[Row], folds: Iterable[str]) -> None:
    known = {row.fold for row in rows}
    for fold in folds:
        if fold not in known:
            raise UsageError(f"no row in fold {fold!r} (folds: {', '.join(sorted(known))})")


def _crossing_groups(train: Sequence[Row], valid: Sequence[Row]) -> str:
    return _crossing("group", {row.group for row in train}, {row.group for row in valid})


def _crossing_files(train: Sequence[Row], valid: Sequence[Row]) -> str:
    return _crossing("file", {row.name for row in train}, {row.name for row in valid})


def _crossing(what: str, train: set[str], valid: set[str]) -> str:
    """What is wrong with names on both sides; empty: nothing."""
    both = sorted((train & valid) - {""})
    if not both:
        return ""
    are, more = (f"{what}s are", ", ...") if len(both) > 1 else (f"{what} is", "")
    return f"{len(both)} {are} in training and in evaluation: {both[0]!r}{more}"


def _share(name: str) -> float:
    """A number in [0, 1) that belongs to a name for ever."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
