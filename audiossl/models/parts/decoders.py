"""Decoders of masked autoencoders: from the tokens of visible patches to the pixels of all.

    latent (batch, class tokens + n, encoder dim) -> linear -> a mask token where a patch was hidden
      -> + fixed positions -> blocks -> norm -> linear -> (batch, patches, pixels)

"standard"  pre-norm transformer blocks over all tokens (MAE, He et al. 2022; Bird-MAE)
"swin"      blocks of attention within windows of 4x4 patches, every second one shifted by two rows,
            over the patch tokens alone (Audio-MAE, Huang et al. 2022, section 3.2). The block is
            Swin V2's (Liu et al. 2022, arXiv 2111.09883): norms after the branches, scaled cosine
            attention, and a bias that a small network computes from log-spaced distances. As in
            Audio-MAE's code, that network has dropout of 0.1 in training, and a shift is masked by
            -100, not by minus infinity.

Decoders are left behind after pretraining: no model folder holds one.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiossl.models.parts.layers import Block, Mlp
from audiossl.models.parts.patches import sincos

Kind = Literal["standard", "swin"]
Grid = tuple[int, int]  # (rows, columns)

WINDOW = (4, 4)  # patches: Audio-MAE, section 3.2
SHIFT = (2, 0)  # patches, of every second block
BIAS_HIDDEN = 384  # units of the network that computes the bias
BIAS_DROPOUT = 0.1
MASKED = -100.0  # score of a patch that only the shift brought into the window
MIN_TAU = 0.01
MIN_NORM = 1e-6  # of the product of a query's and a key's norms
EPS = 1e-6


class Decoder(nn.Module):
    """latent, kept -> the pixels of every patch: (batch, patches, pixels).

    encoder_dim, class_tokens: of the encoder. grid: (rows, columns) of patches, read row by row.
    table_width: patches in a row as the sin-cos table counts them (`ViT.table_width`).
    Raises ValueError when the windows of "swin" do not fill the grid.
    """

    positions: Tensor  # (1, patches, dim)

    def __init__(
        self,
        encoder_dim: int,
        class_tokens: int,
        grid: Grid,
        table_width: int,
        pixels: int,
        *,
        kind: Kind = "standard",
        dim: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.class_tokens, self.patches = class_tokens, grid[0] * grid[1]
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos(self.patches, table_width, dim), persistent=False)
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, grid, SHIFT if index % 2 else (0, 0), mlp_ratio)
            if kind == "swin"
            else Block(dim, heads, mlp_ratio, eps=EPS)
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.predict = nn.Linear(dim, pixels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, kept: Tensor) -> Tensor:
        """latent: (batch, class tokens + n, encoder dim), kept: (batch, n) int64, the patches that
        its tokens stand for -> (batch, patches, pixels)."""
        front, visible = self.embed(latent).tensor_split([self.class_tokens], dim=1)
        tokens = self.mask_token.to(visible.dtype).expand(len(visible), self.patches, -1)
        tokens = tokens.scatter(1, kept[..., None].expand_as(visible), visible)
        x = tokens + self.positions
        if self.kind == "standard":
            x = torch.cat([front, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x))[:, -self.patches :]


class SwinBlock(nn.Module):
    """x + norm(window attention(x)), then x + norm(mlp(x)), over patches (batch, rows * columns,
    dim).

    A window is never larger than the grid, and along an axis that it fills nothing is shifted.
    """

    shift_mask: Tensor | None  # (windows, patches of a window, patches of a window)

    def __init__(self, dim: int, heads: int, grid: Grid, shift: Grid, mlp_ratio: float) -> None:
        super().__init__()
        rows, columns = (min(side, size) for side, size in zip(grid, WINDOW, strict=True))
        if grid[0] % rows or grid[1] % columns:
            raise ValueError(f"a grid of {grid} patches is not made of windows of {WINDOW}")
        self.grid, self.window = grid, (rows, columns)
        self.shift = (shift[0] if grid[0] > rows else 0, shift[1] if grid[1] > columns else 0)
        self.attn = WindowAttention(dim, heads, self.window)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        mask = self._shift_mask() if any(self.shift) else None
        self.register_buffer("shift_mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self._attend(x))
        return x + self.norm2(self.mlp(x))

    def _attend(self, x: Tensor) -> Tensor:
        image = x.unflatten(1, self.grid)
        down, right = self.shift
        if any(self.shift):
            image = image.roll((-down, -right), (1, 2))
        windows = self.attn(self._windows(image), self.shift_mask)
        image = self._image(windows, len(x))
        if any(self.shift):
            image = image.roll((down, right), (1, 2))
        return image.flatten(1, 2)

    def _windows(self, image: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> (batch * windows, patches of a window, dim)."""
        image = image.unflatten(2, (-1, self.window[1])).unflatten(1, (-1, self.window[0]))
        return image.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def _image(self, windows: Tensor, batch: int) -> Tensor:
        """The way back of `_windows`."""
        across = (self.grid[0] // self.window[0], self.grid[1] // self.window[1])
        image = windows.unflatten(0, (batch, *across)).unflatten(3, self.window)
        return image.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _shift_mask(self) -> Tensor:
        """MASKED between patches that are neighbours only because the shift went round."""
        regions = torch.zeros(1, *self.grid, 1)
        for axis in (0, 1):
            side, size, shift = self.grid[axis], self.window[axis], self.shift[axis]
            place = torch.arange(side)
            part = (place >= side - size).long() + (place >= side - shift).long()
            regions += (3**axis) * part.view(1, *(-1 if a == axis else 1 for a in (0, 1)), 1)
        windows = self._windows(regions).squeeze(-1)  # (windows, patches of a window)
        return (windows[:, None, :] != windows[:, :, None]) * MASKED


class WindowAttention(nn.Module):
    """Scaled cosine attention among the patches of each window (Swin V2, equation 2)."""

    distances: Tensor  # (area * area, 2): signed logarithms of rows and columns between two patches

    def __init__(self, dim: int, heads: int, window: Grid) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads, self.area = heads, window[0] * window[1]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.tau = nn.Parameter(torch.ones(heads))
        self.bias_hidden = nn.Linear(2, BIAS_HIDDEN)
        self.bias_out = nn.Linear(BIAS_HIDDEN, heads)
        places = torch.cartesian_prod(*(torch.arange(side) for side in window)).float()
        apart = (places[:, None] - places[None, :]).flatten(0, 1)
        self.register_buffer("distances", apart.sign() * apart.abs().log1p(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch * windows, area, dim); mask: (windows, area, area), added to the scores."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv  # 3 x (batch * windows, heads, area, dim / heads)
        norms = q.norm(dim=-1, keepdim=True) @ k.norm(dim=-1, keepdim=True).transpose(-2, -1)
        scores = q @ k.transpose(-2, -1) / norms.clamp(min=MIN_NORM)
        scores = scores / self.tau.clamp(min=MIN_TAU).view(-1, 1, 1) + self.bias()
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        x = scores.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).flatten(2))

    def bias(self) -> Tensor:
        """(heads, area, area), from the distances between patches."""
        dropout = BIAS_DROPOUT if self.training else 0.0
        hidden = F.dropout(F.relu(self.bias_hidden(self.distances)), dropout)
        values = F.dropout(self.bias_out(hidden), dropout)
        return values.T.unflatten(1, (self.area, self.area))
