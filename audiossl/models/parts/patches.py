"""Spectrograms as grids of patches, and the position tables that belong to them.

`order` is the axis whose patches stand in rows: "frequency" reads the grid frequency by frequency
(all times of the lowest patch row first), "time" reads it instant by instant. With "time" the
spectrogram is transposed once at the door, and rows, columns, kernels and pixels all follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.models.parts.layers import Timing

Order = Literal["frequency", "time"]
Fit = Literal["cut", "interpolate"]

WAVELENGTH = 10_000.0  # patches: the longest period of a sin-cos table is 2 pi times this


class PatchEmbed(nn.Conv2d):
    """A convolution that takes a spectrogram (batch, mel, frames) and gives a token a patch.

    mel: bands of the spectrogram. patch, stride: (frequency, time), in mel bands and frames; stride
    None = patches side by side. Raises ValueError on an unknown `order`.
    """

    def __init__(
        self,
        dim: int,
        mel: int,
        patch: Sequence[int],
        stride: Sequence[int] | None = None,
        order: Order = "frequency",
    ) -> None:
        if order not in ("frequency", "time"):
            raise ValueError(f"order: expected 'frequency' or 'time', got {order!r}")
        super().__init__(1, dim, _along_rows(patch, order), _along_rows(stride or patch, order))
        self.mel = mel
        self.order: Order = order

    def forward(self, spec: Tensor) -> Tensor:  # type: ignore[override]
        """spec: (batch, mel, frames) -> embedded patches (batch, patches, dim).

        Raises ValueError when mel is not the model's or the frames do not fill one patch.
        """
        self._check(spec)
        image = self._rows_first(spec).unsqueeze(1)
        return super().forward(image).flatten(2).transpose(1, 2)

    def some(self, spec: Tensor, kept: Tensor) -> Tensor:
        """spec: (batch, mel, frames), kept: (batch, n) int64 -> those of `forward`'s tokens,
        (batch, n, dim), without the work of the others. Raises ValueError as `forward` does."""
        self._check(spec)
        pixels = take(self.pixels(spec), kept)
        return F.linear(pixels, self.weight.flatten(1), self.bias)

    def pixels(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> its values in each patch, (batch, patches, pixels).

        Patches in token order, pixels row by row of the image.
        """
        patches = self._rows_first(spec)
        for axis, (size, step) in enumerate(zip(self.kernel_size, self.stride, strict=True), 1):
            patches = patches.unfold(axis, size, step)
        return patches.flatten(3).flatten(1, 2)

    def grid(self, frames: int) -> tuple[int, int]:
        """(rows, columns) of patches in a spectrogram of `frames` frames; ValueError on 0."""
        sides = _along_rows((self.mel, frames), self.order)
        lengths = zip(sides, self.kernel_size, self.stride, strict=True)
        rows, columns = ((side - kernel) // step + 1 for side, kernel, step in lengths)
        if rows < 1 or columns < 1:
            kernel = _along_rows(self.kernel_size, self.order)
            raise ValueError(f"{self.mel} x {frames} values do not fill one patch of {kernel}")
        return rows, columns

    def over_time(self, tokens: Tensor, frames: int) -> Tensor:
        """tokens: (batch, patches, dim) of a spectrogram of `frames` frames -> (batch, moments,
        dim), averaged over the frequencies of a moment."""
        grid = tokens.unflatten(1, self.grid(frames))
        return grid.mean(1 if self.order == "frequency" else 2)

    @property
    def timing(self) -> Timing:
        """A moment is as wide as a patch, and a stride from the last."""
        hop, width = (
            _along_rows(pair, self.order)[1]  # pyright: ignore[reportArgumentType]
            for pair in (self.stride, self.kernel_size)
        )
        return Timing(0, hop, width)

    def restride(self, stride: Sequence[int]) -> None:
        """Change the (frequency, time) stride; kernels stay."""
        self.stride = _along_rows(stride, self.order)

    def _check(self, spec: Tensor) -> None:
        if spec.ndim != 3 or spec.shape[1] != self.mel:
            raise ValueError(f"expected spec (batch, {self.mel}, frames), got {tuple(spec.shape)}")
        self.grid(spec.shape[-1])

    def _rows_first(self, spec: Tensor) -> Tensor:
        """(batch, rows, columns)"""
        return spec if self.order == "frequency" else spec.transpose(1, 2)


def _along_rows(pair: Sequence[int], order: Order) -> tuple[int, int]:
    """(frequency, time) to (rows, columns), and back."""
    frequency, time = pair
    return (frequency, time) if order == "frequency" else (time, frequency)


def take(rows: Tensor, kept: Tensor) -> Tensor:
    """rows: (batch or 1, patches, size), kept: (batch, n) int64 -> (batch, n, size)."""
    index = kept[..., None].expand(-1, -1, rows.shape[-1])
    return rows.expand(len(kept), -1, -1).gather(1, index)


def sincos(count: int, width: int, dim: int) -> Tensor:
    """Fixed 2-D table (1, count, dim) for patches numbered row by row in rows of `width`.

    First half: sine, then cosine of the column; second half: of the row. Source: MAE (He et al.
    2022), as Audio-MAE and Bird-MAE use it. dim must be a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"a sin-cos table needs a dim that is a multiple of 4, got {dim}")
    frequency = WAVELENGTH ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    index = torch.arange(count)
    angles = [
        place.double().outer(frequency)
        for place in (index % width, index.div(width, rounding_mode="floor"))
    ]
    halves = [torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles]
    return torch.cat(halves, dim=1).float().unsqueeze(0)


def resize_table(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    fit: Fit = "cut",
    ssast_bug: bool = False,
) -> Tensor:
    """A position table for another patch grid.

    table: (1, rows * columns, dim); old, new: (rows, columns) -> (1, new rows * columns, dim).
    An axis that grows is stretched (bilinear); one that shrinks keeps its middle with fit "cut"
    (AST, SSAST section "fine-tune") and is squeezed with "interpolate".
    `ssast_bug` repeats what SSAST's public code does in frequency order: stretching time passes
    through 8 frequency rows whatever their number, and a cut in frequency takes as many rows as
    there are new columns (it crashes there; here ValueError). With 8 rows or 1 before, as in all
    released weights, both agree wherever the reference does not crash.
    """
    if old == new:
        return table
    image = table.transpose(1, 2).unflatten(2, old)  # (1, dim, rows, columns)
    if ssast_bug:
        image = _resize_as_ssast(image, old, new)
    else:
        if fit == "cut":
            image = _middle(_middle(image, 2, new[0]), 3, new[1])
        if image.shape[2:] != new:
            image = F.interpolate(image, size=new, mode="bilinear")
    return image.flatten(2).transpose(1, 2)


def resize_tail(
    table: Tensor,
    extra: int,
    old: tuple[int, int],
    new: tuple[int, int],
    fit: Fit = "cut",
    ssast_bug: bool = False,
) -> Tensor:
    """`resize_table` of all but the first `extra` rows, which belong to class tokens.

    table: (1, extra + rows * columns, dim) -> (1, extra + new rows * columns, dim).
    """
    front, patches = table[:, :extra], table[:, extra:]
    return torch.cat([front, resize_table(patches, old, new, fit, ssast_bug)], dim=1)


def _middle(image: Tensor, axis: int, size: int) -> Tensor:
    length = image.shape[axis]
    return image if length <= size else image.narrow(axis, length // 2 - size // 2, size)


def _resize_as_ssast(image: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    if new[1] < old[1]:
        image = _middle(image, 3, new[1])
    else:
        image = F.interpolate(image, size=(8, new[1]), mode="bilinear")
    if new[0] < old[0]:
        start = old[0] // 2 - new[0] // 2
        image = image[:, :, start : start + new[1]]
    else:
        image = F.interpolate(image, size=new, mode="bilinear")
    if image.shape[2:] != new:
        raise ValueError(f"SSAST's code cannot go from a {old} to a {new} grid: leave its bug out")
    return image
