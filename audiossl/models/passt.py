"""PaSST, the Patchout faSt Spectrogram Transformer: AST that trains on part of its patches.

Paper: Koutini, Schlueter, Eghbal-zadeh, Widmer, "Efficient Training of Audio Transformers with
Patchout", Interspeech 2022 (arXiv 2110.05069); code kkoutini/PaSST. Parts:
- input: 128 mel bands every 10 ms at 32 kHz (frontend `passt`), 10 s
- patches of 16x16 every 10 bands and 10 frames, read frequency by frequency: 12 x 99 = 1188
- a position is the sum of two learned tables, one over frequency and one over time (section 2.1)
- patchout (section 2.2), in training alone: structured, whole columns and rows of the grid leave;
  unstructured, single patches do; the blocks never see them
- DeiT blocks with a class and a distillation token; embedding = mean of the two
- head: LayerNorm and Linear (`layernorm_linear` in a model's config)

Lengths: a shorter spectrogram gets the first columns of the time table, in training a stretch of it
from a random place, the same for the whole batch. A longer one is embedded in pieces as long as the
table, evenly spread, whose embeddings are averaged. (The reference cuts it, or crashed; its tokens
are cut here too.) One that does not fill a patch is repeated until it does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiossl.errors import ModelError
from audiossl.models.parts.layers import Block, Timing
from audiossl.models.parts.patches import PatchEmbed
from audiossl.models.parts.published import Checkpoint, Layout, Published
from audiossl.models.vit import SIZES

PATCH = 16  # mel bands, and frames: PaSST has no other


class PaSST(nn.Module):
    """Encoder: `encoder(spec)` gives the tokens, `encoder.embed(spec)` one vector a clip.

    size: "tiny", "small" or "base" gives dim, depth and heads; each may be replaced by a number.
    mel, frames: size of the spectrogram the position tables are made for; the time table has
        frames // stride columns, which the reference counts so: 99 for 998 frames, and for 2000
        one more than there are patches.
    stride: (frequency, time) in mel bands and frames; 16 = patches side by side.
    patchout_time, patchout_frequency: columns and rows of the patch grid that are left out, in
        training. patchout: patches left out of what then remains.
    drop_path: rate at the last block, rising linearly from 0 at the first.
    checkpointing: recompute each block in the backward pass: less memory, more time.
    Raises ValueError on an unknown size or a patchout below 0 or of all there is.
    """

    class_tokens = 2

    def __init__(
        self,
        size: str = "base",
        *,
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mel: int = 128,
        frames: int = 998,
        stride: Sequence[int] = (10, 10),
        patchout_time: int = 0,
        patchout_frequency: int = 0,
        patchout: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size: expected one of {', '.join(SIZES)}, got {size!r}")
        dim, depth, heads = dim or SIZES[size][0], depth or SIZES[size][1], heads or SIZES[size][2]
        self.dim, self.mel, self.frames = dim, mel, frames
        self.patchout_time, self.patchout_frequency = patchout_time, patchout_frequency
        self.patchout, self.checkpointing = patchout, checkpointing
        self.patch_embed = PatchEmbed(dim, mel, (PATCH, PATCH), stride)
        rows, columns = self.patch_embed.grid(frames)
        self.columns = columns = max(columns, frames // stride[1])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.class_pos_embed = nn.Parameter(torch.zeros(1, 2, dim))
        self.freq_pos_embed = nn.Parameter(torch.zeros(1, dim, rows, 1))
        self.time_pos_embed = nn.Parameter(torch.zeros(1, dim, 1, columns))
        rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qkv_bias, eps, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self._initialise()

    def forward(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> tokens (batch, 2 + patches, dim), normalised.

        The class and the distillation token come first. Of a spectrogram longer than the time table
        the rest is cut off; in training the patches are those that patchout leaves.
        """
        patches = self._patchout(self._placed(spec))
        front = torch.cat([self.cls_token, self.dist_token], dim=1) + self.class_pos_embed
        x = torch.cat([front.expand(patches.shape[0], -1, -1), patches], dim=1)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)

    def embed(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, dim), mean of class and distillation token.

        Of a longer spectrogram than the time table: the mean over pieces that cover all of it.
        """
        pieces = [self(piece)[:, :2].mean(1) for piece in self._pieces(spec)]
        return torch.stack(pieces).mean(0)

    def grid(self, frames: int) -> tuple[int, int]:
        """(rows, columns) of the patches that a spectrogram of `frames` frames gives, all kept."""
        rows, columns = self.patch_embed.grid(max(frames, PATCH))
        return rows, min(columns, self.columns)

    @property
    def timing(self) -> Timing:
        return self.patch_embed.timing

    def timeline(self, spec: Tensor) -> Tensor:
        """spec: (batch, mel, frames) -> (batch, moments, dim), a moment every stride frames.

        Patch tokens, normalised, averaged over frequency. A spectrogram longer than the time table
        is read table by table, side by side, so that all of it has moments. In training with
        patchout there is no such order.
        """
        step = self.patch_embed.stride[1]
        count = self.patch_embed.grid(max(spec.shape[-1], PATCH))[1]
        moments = []
        for first in range(0, count, self.columns):
            last = min(first + self.columns, count) - 1
            tokens = self(spec[..., first * step : last * step + PATCH])[:, 2:]
            moments.append(tokens.unflatten(1, (-1, last - first + 1)).mean(1))
        return torch.cat(moments, dim=1)

    def _pieces(self, spec: Tensor) -> Iterator[Tensor]:
        step = self.patch_embed.stride[1]
        span = PATCH + (self.columns - 1) * step  # frames that the table reaches over
        spare = spec.shape[-1] - span
        if spare < step:  # what is left fills no further patch
            yield spec
            return
        count = -(-spec.shape[-1] // span)
        for index in range(count):
            start = round(index * spare / (count - 1))
            yield spec[..., start : start + span]

    def _placed(self, spec: Tensor) -> Tensor:
        """spec -> patches with their positions, (batch, rows, columns, dim)."""
        short = PATCH - spec.shape[-1]
        if short > 0:
            spec = spec.repeat(1, 1, -(-PATCH // spec.shape[-1]))[..., :PATCH]
        grid = self.patch_embed(spec).unflatten(1, self.patch_embed.grid(spec.shape[-1]))
        grid = grid[:, :, : self.columns]
        spare = self.columns - grid.shape[2]
        start = int(torch.randint(1 + spare, (1,))) if self.training and spare else 0
        time = self.time_pos_embed[..., start : start + grid.shape[2]]
        return grid + time.permute(0, 2, 3, 1) + self.freq_pos_embed.permute(0, 2, 3, 1)

    def _patchout(self, grid: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> (batch, patches, dim): in training, without some."""
        if self.training:
            grid = _without(grid, 2, self.patchout_time, "patchout_time: columns")
            grid = _without(grid, 1, self.patchout_frequency, "patchout_frequency: rows")
        patches = grid.flatten(1, 2)
        return (
            _without(patches, 1, self.patchout, "patchout: patches") if self.training else patches
        )

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in self.parameters(recurse=False):
            nn.init.trunc_normal_(table, std=0.02)


def _without(grid: Tensor, axis: int, count: int, what: str) -> Tensor:
    """`grid` without `count` places of `axis`, drawn anew, the same ones for the whole batch."""
    if count == 0:
        return grid
    size = grid.shape[axis]
    if not 0 <= count < size:
        raise ValueError(f"{what} to leave out: expected 0 to {size - 1} of {size}, got {count}")
    kept = torch.randperm(size)[: size - count].sort().values
    return grid.index_select(axis, kept.to(grid.device))


build = PaSST


# --- published layouts ----------------------------------------------------------------------------

SEVERAL_LABELS = (20, 200, 527)  # OpenMIC-2018, FSD50K, AudioSet; ESC-50 has one label a clip
STRIDES = {12: 10, 10: 12, 9: 14, 8: 16}  # by rows of the frequency table
TEN_SECONDS = 998  # frames: the released models' own size
HOPS = {320: 100}  # samples, by columns of the time table, where it is not the preset's 320
AMBIGUOUS = 200  # columns: 20 s with a hop of 320 samples, or 10 s with one of 160


def _released_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The files hold weights alone: size and stride are read off the shapes, and with them what
    the time table's length says of the spectrogram."""
    tensors, given = checkpoint.tensors, checkpoint.overrides.get("frontend", {})
    dim, rows = tensors["freq_new_pos_embed"].shape[1:3]
    columns = tensors["time_new_pos_embed"].shape[-1]
    stride = STRIDES.get(rows)
    if stride is None:
        raise ModelError(f"freq_new_pos_embed has {rows} rows, expected one of {list(STRIDES)}")
    if columns == AMBIGUOUS and "hop" not in given:
        raise ModelError(
            f"time_new_pos_embed has {AMBIGUOUS} columns: give the frontend's hop,"
            " 320 (20 s models) or 160 (stfthop160 models)"
        )
    hop = given.get("hop", HOPS.get(columns, 320))
    frames = TEN_SECONDS if columns == TEN_SECONDS // stride else columns * stride
    classes = len(tensors["head.1.weight"])
    depths = (re.match(r"blocks\.(\d+)\.", name) for name in tensors)
    return {
        "architecture": {
            "name": "passt",
            "dim": dim,
            "depth": 1 + max((int(match[1]) for match in depths if match), default=-1),
            "heads": dim // 64,  # as in DeiT's three sizes
            "frames": frames,
            "stride": [stride, stride],
        },
        "frontend": {"preset": "passt", "hop": hop},
        "head": {
            "name": "layernorm_linear",
            "activation": "sigmoid" if classes in SEVERAL_LABELS else "softmax",
        },
        "task": "tag",
        "window_seconds": float(round(columns * stride * hop / 32000)),
        "method": "supervised",
    }


LAYOUTS = (
    Layout(
        name="passt",
        marks=(r"time_new_pos_embed", r"freq_new_pos_embed", r"head\.1\.weight"),
        rows=(
            (r"patch_embed\.proj\.(weight|bias)", r"encoder.patch_embed.\1"),
            (r"(cls_token|dist_token|norm\..+|blocks\..+)", r"encoder.\1"),
            (r"new_pos_embed", "encoder.class_pos_embed"),
            (r"(freq|time)_new_pos_embed", r"encoder.\1_pos_embed"),
            (r"head\.0\.(weight|bias)", r"head.norm.\1"),
            (r"head\.1\.(weight|bias)", r"head.linear.\1"),
            (r"head_dist\.(weight|bias)", None),  # DeiT's second head: never used by PaSST
        ),
        config=_released_config,
    ),
)

AUDIOSET = ("ImageNet", "AudioSet")
RELEASES = {  # file -> what it was trained on
    "passt-s-f128-p16-s10-ap.476-swa.pt": AUDIOSET,
    "passt-s-f128-p16-s10-ap.4761-swa.pt": AUDIOSET,
    "passt-s-f128-p16-s10-ap.472.pt": AUDIOSET,
    "passt-s-f128-p16-s12-ap.473-swa.pt": AUDIOSET,
    "passt-s-f128-p16-s12-ap.470.pt": AUDIOSET,
    "passt-s-f128-p16-s14-ap.471-swa.pt": AUDIOSET,
    "passt-s-f128-p16-s14-ap.469.pt": AUDIOSET,
    "passt-s-f128-p16-s16-ap.473-swa.pt": AUDIOSET,
    "passt-s-f128-p16-s16-ap.468.pt": AUDIOSET,
    "passt-s-kd-ap.486.pt": AUDIOSET,
    "passt-l-kd-ap.47.pt": AUDIOSET,
    "passt-b-f128-p16-s16-ap.459.pt": AUDIOSET,
    "passt-u600-f128-p16-s16-ap.460.pt": AUDIOSET,
    "passt-s-f128-20sec-p16-s10-ap.474-swa.pt": AUDIOSET,
    "passt-s-f128-30sec-p16-s10-ap.473-swa.pt": AUDIOSET,
    "passt-s-f128-stfthop100-p16-s10-ap.473-swa.pt": AUDIOSET,
    "passt-s-f128-stfthop160-p16-s10-ap.473-swa.pt": AUDIOSET,
    "fsd50k-passt-s-f128-p16-s10-ap.655.pt": (*AUDIOSET, "FSD50K"),
    "fsd50k-passt-s-n-f128-p16-s16-ap.642.pt": (*AUDIOSET, "FSD50K"),
    "openmic-passt-s-f128-10sec-p16-s10-ap.85.pt": (*AUDIOSET, "OpenMIC-2018"),
}
PUBLISHED = tuple(
    Published(
        name=name,
        layout="passt",
        licence="Apache-2.0",
        training=training,
        source="https://github.com/kkoutini/PaSST/releases",
    )
    for name, training in RELEASES.items()
)
