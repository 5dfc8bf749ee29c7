"""Which patches of a spectrogram are hidden from an encoder that learns to guess them.

A mask is drawn for one clip as numbers of patches in token order; a batch of masks is
ids (batch, hidden) int64, or with `as_bool` (batch, patches) bool, True = hidden.

SSAST (Gong et al. 2022, section "masked spectrogram patch modeling") and SSAMBA hide clusters of
square patches, and frames one by one. Drawn with Python's own `random`, whose global generator the
training loop seeds before each pass.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

CLUSTER_SIDES = (3, 4, 5)  # patches: SSAST's C, drawn anew for each mask


def cluster_mask(patches: int, columns: int, hidden: int) -> list[int]:
    """Numbers of `hidden` patches of a grid read row by row, most of them in square clusters.

    Exactly what SSAST's code draws, with what is odd about it: all clusters of a mask are equally
    large, a cluster at the right edge goes on in the next row, patch 0 is never hidden, and what is
    drawn beyond `hidden` is dropped in the order of a set, mostly the highest numbers.
    Raises ValueError when that many cannot be hidden: at most patches - 2.
    """
    if not 0 < hidden <= patches - 2:
        raise ValueError(f"{hidden} of {patches} patches cannot be hidden: at most {patches - 2}")
    side = CLUSTER_SIDES[random.randrange(len(CLUSTER_SIDES))]
    drawn: set[int] = set()
    while len(drawn) <= hidden:
        start = random.randrange(patches)
        cluster = [start + columns * row + column for row in range(side) for column in range(side)]
        drawn.update(patch for patch in cluster if 0 < patch < patches)
    return list(drawn)[:hidden]


def frame_mask(patches: int, hidden: int) -> list[int]:
    """Numbers of `hidden` patches, each equally likely: SSAST's masks of whole frames.

    Raises ValueError when there are not so many.
    """
    if not 0 < hidden <= patches:
        raise ValueError(f"{hidden} of {patches} patches cannot be hidden")
    return random.sample(range(patches), hidden)


def ssast_masks(batch: int, grid: tuple[int, int], hidden: int) -> Tensor:
    """A mask for each clip of a batch, (batch, hidden) int64: clusters, or frames if grid has one
    row.

    grid: (rows, columns) of patches. Raises ValueError as the two functions do.
    """
    rows, columns = grid
    patches = rows * columns
    if rows == 1:
        return torch.tensor([frame_mask(patches, hidden) for _ in range(batch)])
    return torch.tensor([cluster_mask(patches, columns, hidden) for _ in range(batch)])


def as_bool(ids: Tensor, patches: int) -> Tensor:
    """ids: (batch, hidden) int64 -> (batch, patches) bool, True = hidden."""
    mask = torch.zeros(len(ids), patches, dtype=torch.bool, device=ids.device)
    return mask.scatter_(1, ids, True)
