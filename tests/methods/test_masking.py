"""Masks against a slow version, the reference's own draws, and what their statistics must be."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from audiossl.methods.parts.masking import as_bool, cluster_mask, frame_mask, ssast_masks

STORED = Path(__file__).parents[1] / "data" / "parity" / "ssast__tiny_patch.npz"
GRID = (8, 64)


def slow_cluster_mask(patches: int, columns: int, hidden: int) -> list[int]:
    """By the words of the specification, with lists."""
    ids: list[int] = []
    side = random.randrange(3) + 3
    while len(set(ids)) <= hidden:
        start = random.randrange(patches)
        for i in range(side):
            for j in range(side):
                index = start + columns * i + j
                if 0 < index < patches:
                    ids.append(index)
    return list(set(ids))[:hidden]


@pytest.mark.parametrize(
    ("grid", "hidden"),
    [((8, 64), 400), ((8, 64), 250), ((8, 64), 100), ((8, 64), 1), ((4, 6), 22), ((4, 6), 9)],
)
def test_cluster_masks_equal_the_slow_version(grid: tuple[int, int], hidden: int) -> None:
    patches = grid[0] * grid[1]
    for seed in range(20):
        random.seed(seed)
        slow = [slow_cluster_mask(patches, grid[1], hidden) for _ in range(2)]
        random.seed(seed)
        assert [cluster_mask(patches, grid[1], hidden) for _ in range(2)] == slow


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cluster_masks_are_those_of_the_reference(seed: int) -> None:
    stored = np.load(STORED)
    random.seed(seed)
    for task in ("mpc", "mpg"):  # one mask a clip, first of one task, then of the other
        assert ssast_masks(2, GRID, 400).tolist() == stored[f"mask_seed{seed}/{task}"].tolist()


def test_a_cluster_is_a_square_that_wraps_at_the_right_edge(monkeypatch) -> None:
    draws = iter([0, 2 * 64 + 62, 0])  # C = 3, then a start two columns before the edge
    monkeypatch.setattr(random, "randrange", lambda _stop: next(draws))
    first = {2 * 64 + 62, 2 * 64 + 63, 3 * 64}  # of each row: two in it, one in the next
    square = {patch + 64 * row for patch in first for row in range(3)}
    assert set(cluster_mask(512, 64, 8)) < square
    draws = iter([1, 6 * 64 + 10, 0])  # C = 4, in the last but one row: two rows are left
    assert set(cluster_mask(512, 64, 7)) < {row * 64 + 10 + j for row in (6, 7) for j in range(4)}


def test_statistics_of_cluster_masks() -> None:
    random.seed(0)
    mask = as_bool(ssast_masks(400, GRID, 400), 512).float()
    assert (mask.sum(1) == 400).all()
    share = mask.mean(0)
    assert share[0] == share[-1] == 0  # at least one is too much, and the last is dropped
    assert share[1:-1].min() > 0.1
    assert share[:64].mean() < share[-64:].mean() < share[128:-64].mean() < 0.95
    image = as_bool(ssast_masks(400, GRID, 100), 512).float().view(-1, 8, 64)
    beside = (image[:, 3:5, :-1] * image[:, 3:5, 1:]).mean() / image[:, 3:5, :-1].mean()
    assert beside > 2 * image[:, 3:5].mean()  # a neighbour of a hidden patch is likely hidden too


def test_frame_masks_are_plain_samples() -> None:
    random.seed(5)
    expected = [random.sample(range(512), 400) for _ in range(3)]
    random.seed(5)
    assert ssast_masks(3, (1, 512), 400).tolist() == expected
    random.seed(0)
    mask = as_bool(torch.tensor([frame_mask(64, 48) for _ in range(2000)]), 64).float()
    assert (mask.sum(1) == 48).all()
    assert mask.mean(0).sub(0.75).abs().max() < 0.05
    together = (mask[:, :-1] * mask[:, 1:]).mean()
    assert together == pytest.approx(48 * 47 / (64 * 63), abs=0.01)  # no clusters


def test_as_bool() -> None:
    ids = torch.tensor([[2, 0], [1, 2]])
    expected = [[True, False, True, False], [False, True, True, False]]
    assert as_bool(ids, 4).tolist() == expected


def test_more_than_can_be_hidden() -> None:
    for hidden in (0, 23, 24):
        with pytest.raises(ValueError, match=f"{hidden} of 24 patches cannot be hidden"):
            cluster_mask(24, 6, hidden)
    assert sorted(cluster_mask(24, 6, 22))[0] == 1
    with pytest.raises(ValueError, match="25 of 24 patches cannot be hidden"):
        frame_mask(24, 25)
    assert sorted(frame_mask(24, 24)) == list(range(24))
