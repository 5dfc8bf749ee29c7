"""Which patches of a spectrogram are hidden from an encoder that learns to guess them.

A batch of masks is (batch, patches) bool, True = hidden.

Audio-MAE and Bird-MAE keep so few patches that only those go through the encoder: beside the mask
stand the kept ones, (batch, n) int64, in the order in which the encoder sees them. Drawn from
torch's global generator.

SSAST (Gong et al. 2022, section "masked spectrogram patch modeling") and SSAMBA hide clusters of
square patches, and frames one by one, and put something else in their place: their masks are
numbers of patches, (batch, hidden) int64, and `as_bool` makes masks of them. Drawn with Python's
own `random`. Both generators are seeded by the training loop before each pass.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

CLUSTER_SIDES = (3, 4, 5)  # patches: SSAST's C, drawn anew for each mask


def random_mask(
    batch: int, patches: int, ratio: float, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Hide a random part of each clip's patches, alike for all: (mask, kept).

    Audio-MAE's and Bird-MAE's (unstructured) mask: patches in the order of one random number each,
    of which the first int(patches * (1 - ratio)) are kept.
    """
    order = torch.rand(batch, patches, device=device).argsort(dim=1)
    kept = order[:, : int(patches * (1 - ratio))]
    return ~as_bool(kept, patches), kept


def grid_mask(
    batch: int,
    grid: tuple[int, int],
    row_ratio: float,
    column_ratio: float,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Hide whole rows and whole columns of each clip's grid of patches: (mask, kept).

    grid: (rows, columns), patches read row by row. Audio-MAE's mask for fine-tuning (section "2-D
    masking"): int(rows * (1 - row_ratio)) rows are kept, of columns likewise.
    """
    rows, columns = grid
    _, kept_rows = random_mask(batch, rows, row_ratio, device)
    _, kept_columns = random_mask(batch, columns, column_ratio, device)
    kept = (kept_rows[:, :, None] * columns + kept_columns[:, None, :]).flatten(1)
    return ~as_bool(kept, rows * columns), kept


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
    """ids: (batch, n) int64, numbers of patches -> (batch, patches) bool, True for these."""
    mask = torch.zeros(len(ids), patches, dtype=torch.bool, device=ids.device)
    return mask.scatter_(1, ids, True)
