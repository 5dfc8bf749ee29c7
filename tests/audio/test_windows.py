"""windows.py: which windows, when, and with what samples."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiossl.audio.reading import Window, windows
from audiossl.errors import InputError, UsageError


def slow_windows(
    total: int, size: int, hop: Fraction
) -> list[tuple[int, int]]:  # (start, end) in samples
    """By looking at every window there could be, and at what was held before."""
    found: list[tuple[int, int]] = []
    held: set[int] = set()
    for count in range(total + 1):
        start = round(count * hop)
        samples = range(start, min(start + size, total))
        if len(samples) == size or (len(samples) and set(samples) - held):
            found.append((start, samples.stop))
            held |= set(samples)
    return found


def cut(total: int, size: int, hop: float, blocks: list[int], rate: int = 10) -> list[Window]:
    wave = np.arange(total, dtype=np.float32)
    edges = np.cumsum([0, *blocks]) % (total + 1)
    pieces = np.split(wave, sorted(edges))
    return list(windows(pieces, rate, size / rate, hop / rate))


@given(
    total=st.integers(0, 60),
    size=st.integers(1, 25),
    hop=st.integers(1, 30),
    blocks=st.lists(st.integers(0, 60), max_size=6),
)
def test_windows_are_those_of_the_slow_version(
    total: int, size: int, hop: int, blocks: list[int]
) -> None:
    found = cut(total, size, hop, blocks)
    expected = slow_windows(total, size, Fraction(hop))
    assert [(round(w.start * 10), round(w.end * 10)) for w in found] == expected
    for window, (start, end) in zip(found, expected, strict=True):
        assert (window.start, window.end) == (start / 10, end / 10)
        np.testing.assert_array_equal(window.wave, np.arange(start, end))


@given(total=st.integers(1, 300), hop=st.fractions(1, 7, max_denominator=8))
def test_hops_of_part_samples_do_not_drift(total: int, hop: Fraction) -> None:
    found = cut(total, 5, float(hop), [7, 11, 13])
    starts = [round(window.start * 10) for window in found]
    assert starts == [start for start, _ in slow_windows(total, 5, hop)]


def test_known_cases() -> None:
    def spans(total: int, size: int, hop: int) -> list[tuple[int, int]]:
        return [(round(w.start * 10), round(w.end * 10)) for w in cut(total, size, hop, [3])]

    assert spans(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]  # 8 to 10 was held already
    assert spans(11, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10), (8, 11)]
    assert spans(3, 4, 2) == [(0, 3)]
    assert spans(10, 2, 4) == [(0, 2), (4, 6), (8, 10)]  # gaps are wished
    assert spans(9, 2, 4) == [(0, 2), (4, 6), (8, 9)]
    assert spans(0, 2, 4) == []


def test_times_after_a_day_are_exact() -> None:
    blocks = (np.zeros(16000 * 60, np.float32) for _ in range(60))
    last = list(windows(blocks, 16000, 0.96, 0.48))[-1]
    assert last.start == round(len(range(0, 3600 * 16000 - 15360 + 1, 7680)) - 1) * 7680 / 16000


def test_one_window_with_everything() -> None:
    (window,) = windows([np.ones(3, np.float32), np.zeros(2, np.float32)], 10, None)
    assert (window.start, window.end) == (0.0, 0.5)
    np.testing.assert_array_equal(window.wave, [1, 1, 1, 0, 0])
    assert list(windows([], 10, None)) == []


def test_windows_are_their_own() -> None:
    first, second = windows([np.zeros(6, np.float32)], 10, 0.4, 0.2)
    first.wave[:] = 1
    assert second.wave.max() == 0


@pytest.mark.parametrize("seconds", [None, 0.4])
def test_what_came_before_damage_is_given(seconds: float | None) -> None:
    def damaged() -> Iterator[np.ndarray]:
        yield np.arange(6, dtype=np.float32)
        raise InputError("broken", code="corrupt")

    given: list[Window] = []
    with pytest.raises(InputError, match="broken"):
        given.extend(windows(damaged(), 10, seconds))
    assert [w.end for w in given] == ([0.6] if seconds is None else [0.4, 0.6])


def test_memory_is_a_window_and_a_block() -> None:
    """Blocks are let go once no window needs them."""
    alive: list[weakref.ref[np.ndarray]] = []

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(200):
            block = np.zeros(1000, np.float32)
            alive.append(weakref.ref(block))
            yield block
            del block
            assert sum(1 for reference in alive if reference() is not None) <= 3

    for size, hop in ((2.5, 1.0), (0.5, 6.0)):
        for _ in windows(blocks(), 1000, size, hop):
            pass


def test_windows_that_cannot_be() -> None:
    for size, hop in ((0.0, None), (1.0, 0.0), (1.0, -1.0), (0.001, None)):
        with pytest.raises(UsageError):
            list(windows([], 100, size, hop))
