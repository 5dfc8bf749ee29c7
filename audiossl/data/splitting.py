"""Split rows into training and evaluation, with no group on both sides."""

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
    """(training rows, evaluation rows).

    rows: all rows; those with split "test" are left out unless `valid_split` is "test".
    valid_folds: folds to evaluate on.
    valid_fraction: without folds, the share of the groups to evaluate on. It is decided by a hash
        of the group's name, so that rows added later move no other row.
    train_folds: folds to train on; empty: all others.
    valid_split: without folds and fraction, the split to evaluate on.
    crossing: what to do with groups on both sides, see `apart`.

    Raises UsageError if a fold does not exist or a group is on both sides.
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
    """The training rows, after dealing with groups that are evaluated as well.

    train: rows to train on.
    valid: rows to evaluate on.
    crossing: "error" raises; "drop" leaves training rows of such groups out; "keep" keeps them, for
        published splits that have them.

    Raises UsageError if a file is on both sides, whatever `crossing` is.
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
    """A sentence about names on both sides; empty if there are none."""
    both = sorted((train & valid) - {""})
    if not both:
        return ""
    are, more = (f"{what}s are", ", ...") if len(both) > 1 else (f"{what} is", "")
    return f"{len(both)} {are} in training and in evaluation: {both[0]!r}{more}"


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
