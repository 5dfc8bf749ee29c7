"""Few-shot draws, whatever the data: how many, of which side, from which recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiossl.data.rows import Row
from audiossl.errors import UsageError
from audiossl.evaluate import fewshot

CLASSES = 4


@st.composite
def clips(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (clips, CLASSES) with any number of labels, recordings, and allowed places."""
    count = draw(st.integers(1, 40))
    rows = draw(
        st.lists(st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES),
                 min_size=count, max_size=count)
    )  # fmt: skip
    recordings = draw(st.lists(st.integers(0, 8), min_size=count, max_size=count))
    allowed = draw(st.sets(st.integers(0, count - 1)))
    return np.array(rows, np.float32), np.array(recordings), np.array(sorted(allowed), np.int64)


@settings(max_examples=150, deadline=None)
@given(data=clips(), shots=st.integers(1, 6), seed=st.integers(0, 5))
def test_every_class_gets_its_shots_from_the_allowed_clips_and_no_more(data, shots, seed) -> None:
    targets, recordings, allowed = data
    drawn = fewshot.draw(targets, recordings, allowed, shots, seed)
    assert set(drawn) <= set(allowed)
    assert list(drawn) == sorted(set(drawn))
    there = targets[allowed].sum(0)
    assert (targets[drawn].sum(0) >= np.minimum(there, shots)).all()
    assert len(drawn) <= np.minimum(there, shots).sum()


@settings(max_examples=100, deadline=None)
@given(data=clips(), shots=st.integers(1, 6), seed=st.integers(0, 5))
def test_one_label_a_clip_means_exactly_as_many(data, shots, seed) -> None:
    targets, recordings, allowed = data
    single = np.eye(CLASSES, dtype=np.float32)[targets.argmax(1)]
    drawn = fewshot.draw(single, recordings, allowed, shots, seed)
    np.testing.assert_array_equal(single[drawn].sum(0), np.minimum(single[allowed].sum(0), shots))
    for column in range(CLASSES):
        own = recordings[drawn][single[drawn, column] > 0]
        there = set(recordings[allowed][single[allowed, column] > 0])
        assert len(set(own)) == min(len(there), len(own))  # recordings first, clips of one later


@settings(max_examples=60, deadline=None)
@given(data=clips(), shots=st.integers(1, 5), seed=st.integers(0, 5))
def test_fewer_shots_are_part_of_more_and_a_seed_draws_the_same_again(data, shots, seed) -> None:
    targets, recordings, allowed = data
    drawn = fewshot.draw(targets, recordings, allowed, shots, seed)
    assert set(drawn) <= set(fewshot.draw(targets, recordings, allowed, shots + 1, seed))
    np.testing.assert_array_equal(drawn, fewshot.draw(targets, recordings, allowed, shots, seed))


def test_seeds_draw_differently_and_evenly() -> None:
    targets, recordings = np.ones((12, 1), np.float32), np.arange(12)
    counts = np.zeros(12)
    for seed in range(600):
        counts[fewshot.draw(targets, recordings, np.arange(12), 2, seed)] += 1
    assert counts.sum() == 1200
    assert counts.min() > 60
    assert counts.max() < 140


def test_rules_go_by_the_length_of_the_recording_and_its_labels(tmp_path: Path) -> None:
    rows = []
    for seconds, labels, extra in (
        (5.0, ("a",), {}),
        (5.0, ("a", "b"), {}),
        (19.0, ("b",), {}),
        (19.0, ("b",), {"ebird_code_secondary": "norfli"}),
        (25.0, ("b",), {}),
    ):
        path = tmp_path / f"{len(rows)}.wav"
        soundfile.write(path, np.zeros(int(seconds * 500)), 500)
        rows.append(Row(path, labels=labels, extra=extra))
    rows.append(Row(tmp_path / "4.wav", start=1.0, end=2.0, labels=("a",)))
    rows.append(Row(tmp_path / "none.wav", labels=("a",)))
    assert fewshot.eligible(rows, "any").all()
    lenient = fewshot.eligible(rows, "lenient")
    np.testing.assert_array_equal(np.flatnonzero(lenient), [0, 2])
    np.testing.assert_array_equal(np.flatnonzero(fewshot.eligible(rows, "strict")), [0, 1])
    with pytest.raises(UsageError, match="lenient"):
        fewshot.eligible(rows, "leninet")


def test_scarce_classes_are_named_with_the_least_there_are() -> None:
    targets = np.eye(30, dtype=np.float32)[[*range(30), *range(5)]]
    labels = [f"c{i}" for i in range(30)]
    whole = np.arange(35)
    assert fewshot.scarce(targets, labels, [whole, whole], 1) == ""
    assert fewshot.scarce(targets, labels, [whole, whole[1:], whole[:30]], 1) == ""
    assert fewshot.scarce(targets, labels, [whole, whole[:28]], 1) == "c28 (0), c29 (0)"
    told = fewshot.scarce(targets, labels, [whole], 2)
    assert told == ", ".join([f"c{i} (1)" for i in range(5, 25)] + ["5 more"])
