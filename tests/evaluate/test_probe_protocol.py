"""Divisions of clips: every clip where it belongs, and no group on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiossl.data.rows import Row
from audiossl.errors import UsageError
from audiossl.evaluate import protocol


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    found = []
    for place in range(draw(st.integers(2, 30))):
        labels = draw(st.lists(st.sampled_from("abc"), max_size=2, unique=True))
        group = draw(st.sampled_from(["", "g1", "g2", "g3", "g4", "g5", "g6"]))
        path = Path(f"{draw(st.integers(0, 9)) if not group else place}.wav")
        fold = draw(st.sampled_from(["", "1", "2", "3"]))
        split = draw(st.sampled_from(["", "train", "valid", "test"]))
        found.append(Row(path, labels=tuple(labels), group=group, fold=fold, split=split))
    return found


@settings(max_examples=100, deadline=None)
@given(rows=rows(), kind=st.sampled_from(["folds", "split", "holdout"]), seed=st.integers(0, 3))
def test_no_group_and_no_file_is_on_two_sides(rows: list[Row], kind: str, seed: int) -> None:
    try:
        splits = protocol.splits(rows, protocol.choose(rows, kind), 0.3, seed)
    except UsageError:
        return
    for split in splits:
        sides = [[rows[i] for i in side] for side in (split.train, split.test, split.valid)]
        for key in (lambda row: row.group, lambda row: str(row.path)):
            names = [{key(row) for row in side} - {""} for side in sides]
            assert not names[0] & names[1]
            assert not names[0] & names[2]
            assert not names[1] & names[2]


@settings(max_examples=100, deadline=None)
@given(rows=rows())
def test_each_fold_is_tested_once_and_nothing_is_lost_but_what_crosses(rows: list[Row]) -> None:
    try:
        splits = protocol.splits(rows, protocol.choose(rows, "folds"), 0.2, 0)
    except UsageError:
        return
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested) == [i for i, row in enumerate(rows) if row.fold]
    for split in splits:
        assert len(split.train) + len(split.test) + split.crossing == len(rows)


def test_the_data_decide_what_is_tested() -> None:
    plain = [Row(Path(f"{i}.wav"), labels=("ab"[i % 2],)) for i in range(10)]
    folded = [Row(row.path, labels=row.labels, fold=str(i % 3)) for i, row in enumerate(plain)]
    halved = [Row(row.path, fold=row.fold, split="test" if i < 4 else "train")
              for i, row in enumerate(folded)]  # fmt: skip
    assert protocol.choose(plain) == "holdout"
    assert protocol.choose(folded) == "folds"
    assert protocol.choose(halved) == "split"
    assert protocol.choose(halved, "folds") == "folds"
    with pytest.raises(UsageError, match="two are needed"):
        protocol.check(plain, "folds")
    with pytest.raises(UsageError, match="no clip to test"):
        protocol.check(folded, "split")
    protocol.check(folded, "folds")
    protocol.check(halved, "split")
    with pytest.raises(UsageError, match="one of auto"):
        protocol.choose(folded, "fold")
    names = [split.name for split in protocol.splits(folded, "folds", 0.2, 0)]
    assert names == ["fold 0", "fold 1", "fold 2"]


def test_a_holdout_has_clips_of_each_label_on_both_sides_and_changes_with_the_seed() -> None:
    rows = [Row(Path(f"{i}.wav"), labels=("abcd"[i % 4],), group=str(i // 2)) for i in range(80)]
    tests = []
    for seed in range(3):
        (split,) = protocol.splits(rows, "holdout", 0.25, seed)
        for side in (split.train, split.test):
            assert {rows[i].labels[0] for i in side} == set("abcd")
        assert 0.2 <= len(split.test) / len(rows) <= 0.3
        tests.append(tuple(split.test))
    assert len(set(tests)) == 3


def test_a_side_without_clips_is_refused() -> None:
    rows = [Row(Path(f"{i}.wav"), group="one", fold=str(i % 2)) for i in range(4)]
    with pytest.raises(UsageError, match="0 clips to train"):
        protocol.splits(rows, "folds", 0.2, 0)


def test_inner_folds_keep_groups_whole_and_classes_on_every_training_side() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 24, 120)
    targets = np.eye(3, dtype=np.float32)[groups % 3]
    found = protocol.inner_folds(groups, targets, seed=1)
    assert len(found) == 5
    held = np.concatenate([valid for _, valid in found])
    assert sorted(held) == list(range(120))
    for train, valid in found:
        assert not set(groups[train]) & set(groups[valid])
        assert (targets[train].sum(0) > 0).all()
    alone = np.eye(3, dtype=np.float32)
    assert protocol.inner_folds(np.arange(3), alone, seed=1) == []
    pairs = protocol.inner_folds(np.arange(6), np.tile(alone, (2, 1)), seed=1)
    assert [len(valid) for _, valid in pairs] == [3, 3]
