"""One Vision Transformer for spectrograms: AST, SSAST, Audio-MAE and Bird-MAE are settings of it.

    spec (batch, mel, frames) -> image (batch, rows, columns) -> patches -> + positions
      -> class tokens in front -> blocks -> norm -> tokens (batch, class tokens + patches, dim)

What differs between the published systems, and the argument that says it:

  system      order      class_tokens  positions       pooling              patch (frequency, time)
  AST         frequency  2 (DeiT)      learned         cls_dist             16x16, stride 10x10
  SSAST       frequency  2 (DeiT)      learned         patches or cls_dist  16x16 or 128x2
  Audio-MAE   time       1             sincos_swapped  fc_norm              16x16
  Bird-MAE    time       1             sincos_swapped  fc_norm              16x16

The patch grid and its `order`, and the position tables, are in patches.py.

Papers: AST (Gong et al. 2021), SSAST (Gong et al. 2022), Audio-MAE (Huang et al. 2022), Bird-MAE
(Rauch et al. 2025); blocks and class tokens as in ViT and DeiT. Dropout, which none of the four
uses, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiossl.models.parts.layers import Block, Timing
from audiossl.models.parts.patches import (
    Fit,
    Order,
    PatchEmbed,
    resize_table,
    resize_tail,
    sincos,
    take,
)

Positions = Literal["learned", "sincos", "sincos_swapped"]
Pooling = Literal["cls", "cls_dist", "patches", "fc_norm"]

HALF_PRECISION = 5e-3  # rounding of numbers below 1 in bfloat16
SIZES = {  # dim, depth, heads: DeiT's three (AST, SSAST) and ViT's three (Bird-MAE, section 1)
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


class ViT(nn.Module):
    """Encoder: `encoder(spec)` gives all tokens, `encoder.embed(spec)` one vector a clip.

    size: "tiny" ... "huge" gives dim, depth and heads; each may be replaced by a number of its own.
    mel, frames: size of the spectrogram the position table is made for; other numbers of frames are
        taken too (`fit` says how the table follows; `refit` makes the change lasting).
    patch, stride: (frequency, time), in mel bands and frames; stride None = patches side by side.
    class_tokens: 0, 1 (cls) or 2 (cls and distillation token).
    positions: "learned"; "sincos", fixed; "sincos_swapped", fixed and built for the transposed
        grid, a slip of Audio-MAE and Bird-MAE that their released weights rely on (time order).
    pooling: "cls" first token; "cls_dist" mean of both class tokens; "patches" mean of the patch
        tokens, all three after the final norm; "fc_norm" mean of the patch tokens of the last
        block, then a norm of its own.
    drop_path: rate at the last block, rising linearly from 0 at the first.
    final_norm: False for fine-tuned Audio-MAE, which has `fc_norm` alone.
    checkpointing: recompute each block in the backward pass: less memory, more time.
    Raises ValueError on settings that do not go together.
    """

    def __init__(
        self,
        size: str = "base",
        *,
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mel: int = 128,
        frames: int = 1024,
        patch: Sequence[int] = (16, 16),
        stride: Sequence[int] | None = None,
        order: Order = "frequency",
        class_tokens: int = 1,
        positions: Positions = "learned",
        fit: Fit = "cut",
        pooling: Pooling = "patches",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        final_norm: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size: expected one of {', '.join(SIZES)}, got {size!r}")
        dim, depth, heads = dim or SIZES[size][0], depth or SIZES[size][1], heads or SIZES[size][2]
        self.dim, self.mel, self.frames = dim, mel, frames
        self.order: Order = order
        self.position_kind: Positions = positions
        self.fit: Fit = fit
        self.pooling: Pooling = pooling
        self.class_tokens, self.checkpointing = class_tokens, checkpointing
        self._check()
        self.patch_embed = PatchEmbed(dim, mel, patch, stride, order)
        if class_tokens >= 1:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if class_tokens == 2:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        if positions == "learned":
            rows, columns = self.grid(frames)
            self.pos_embed = nn.Parameter(torch.zeros(1, class_tokens + rows * columns, dim))
        rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qkv_bias, eps, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=eps) if final_norm else nn.Identity()
        if pooling == "fc_norm":
            self.fc_norm = nn.LayerNorm(dim, eps=eps)
        self._initialise()

    def forward(self, spec: Tensor, kept: Tensor | None = None) -> Tensor:
        """spec: (batch, mel, frames) -> tokens (batch, class tokens + patches, dim), normalised.

        kept: (batch, n) int64, the patches that are looked at, in the order of the tokens that come
        out; the blocks never see the others. None: all.
        """
        return self.forward_tokens(self._placed(spec, kept))

    def embed(self, spec: Tensor, kept: Tensor | None = None) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, dim), pooled as `pooling` says; `kept` as above."""
        normalise = self.pooling != "fc_norm"
        return self.pool(self.forward_tokens(self._placed(spec, kept), normalise))

    def patches(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> embedded patches (batch, patches, dim), no positions yet.

        Raises ValueError when mel is not the model's or the frames do not fill one patch.
        """
        return self.patch_embed(spec)

    def patch_pixels(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> the spectrogram's values in each patch.

        (batch, patches, pixels); patches in token order, pixels row by row of the image: what
        masked models reconstruct.
        """
        return self.patch_embed.pixels(spec)

    def positions(self, frames: int) -> Tensor:
        """Position of each patch of a spectrogram of `frames` frames: (1, patches, dim)."""
        if self.position_kind != "learned":
            rows, columns = self.grid(frames)
            table = sincos(rows * columns, self.table_width(frames), self.dim)
            return table.to(self.patch_embed.weight)
        table = self.pos_embed[:, self.class_tokens :]
        return resize_table(table, self.grid(self.frames), self.grid(frames), self.fit)

    def table_width(self, frames: int) -> int:
        """Patches in a row, as a sin-cos table counts them.

        A swapped one takes the rows that the model was made with for the row's length.
        """
        swapped = self.position_kind == "sincos_swapped"
        return self.grid(self.frames)[0] if swapped else self.grid(frames)[1]

    def forward_tokens(self, tokens: Tensor, normalise: bool = True) -> Tensor:
        """Patch tokens with their positions, all or only those that are not masked, in any order.

        tokens: (batch, n, dim) -> (batch, class tokens + n, dim), after the final norm or, with
        `normalise=False`, as the last block gives them.
        """
        x = torch.cat([self._class_tokens().expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x) if normalise else x

    def pool(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, class tokens + n, dim) -> (batch, dim).

        They must be normalised, except for the pooling "fc_norm".
        """
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "cls_dist":
            return tokens[:, :2].mean(1)
        mean = tokens[:, self.class_tokens :].mean(1)
        return self.fc_norm(mean) if self.pooling == "fc_norm" else mean

    def timeline(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, moments, dim): patch tokens, normalised, averaged
        over the frequencies of a moment; `timing` says when they are."""
        tokens = self(spec)[:, self.class_tokens :]
        return self.patch_embed.over_time(tokens, spec.shape[-1])

    @property
    def timing(self) -> Timing:
        return self.patch_embed.timing

    def grid(self, frames: int) -> tuple[int, int]:
        """(rows, columns) of patches in a spectrogram of `frames` frames; ValueError on 0."""
        return self.patch_embed.grid(frames)

    def refit(
        self, frames: int, stride: Sequence[int] | None = None, ssast_bug: bool = False
    ) -> None:
        """Change the number of frames and the (frequency, time) stride, keeping what is learned.

        This is how SSAST and AST go from pretraining to a task of another length with overlapping
        patches. `ssast_bug`: see `resize_table`.
        """
        old = self.grid(self.frames)
        self.frames = frames
        if stride is not None:
            self.patch_embed.restride(stride)
        new = self.grid(frames)
        if self.position_kind == "learned":
            table = resize_tail(self.pos_embed, self.class_tokens, old, new, self.fit, ssast_bug)
            self.pos_embed = nn.Parameter(table.detach())

    def _placed(self, spec: Tensor, kept: Tensor | None) -> Tensor:
        """Embedded patches with their positions, all or those kept: (batch, n, dim)."""
        positions = self.positions(spec.shape[-1])
        if kept is None:
            return self.patches(spec) + positions
        return self.patch_embed.some(spec, kept) + take(positions, kept)

    def _class_tokens(self) -> Tensor:
        tokens = self.patch_embed.weight.new_zeros(1, 0, self.dim)
        if self.class_tokens >= 1:
            tokens = self.cls_token
        if self.class_tokens == 2:
            tokens = torch.cat([tokens, self.dist_token], dim=1)
        if self.position_kind == "learned":
            return tokens + self.pos_embed[:, : self.class_tokens]
        return tokens  # a sin-cos table holds zeros for them

    def _check(self) -> None:
        needed = {"cls": 1, "cls_dist": 2, "patches": 0, "fc_norm": 0}
        if self.position_kind not in ("learned", "sincos", "sincos_swapped"):
            raise ValueError(f"positions: unknown kind {self.position_kind!r}")
        if self.fit not in ("cut", "interpolate"):
            raise ValueError(f"fit: expected 'cut' or 'interpolate', got {self.fit!r}")
        if self.class_tokens not in (0, 1, 2):
            raise ValueError(f"class_tokens: expected 0, 1 or 2, got {self.class_tokens}")
        if self.pooling not in needed:
            raise ValueError(f"pooling: expected one of {list(needed)}, got {self.pooling!r}")
        if self.class_tokens < needed[self.pooling]:
            raise ValueError(f"pooling {self.pooling!r} needs {needed[self.pooling]} class tokens")
        if self.position_kind == "sincos_swapped" and self.order != "time":
            raise ValueError("positions 'sincos_swapped' stand for a slip made in time order only")

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in self.parameters(recurse=False):  # cls, dist, pos_embed
            nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04)


def fixed_positions(stored: Tensor, class_tokens: int, grid: tuple[int, int]) -> Positions:
    """Which sin-cos table a checkpoint holds, that need not be kept: it can be computed.

    stored: (1, class tokens + patches, dim). Raises ValueError when it is none of the two.
    """
    rows, columns = grid
    front, table = stored.tensor_split([class_tokens], dim=1)
    widths: dict[Positions, int] = {"sincos_swapped": rows, "sincos": columns}
    for kind, width in widths.items():
        expected = sincos(rows * columns, width, stored.shape[-1])
        same = table.shape == expected.shape and (table - expected).abs().max() < HALF_PRECISION
        if same and not front.any():
            return kind
    raise ValueError(f"pos_embed is not the fixed table of {rows} x {columns} patches")


build = ViT
