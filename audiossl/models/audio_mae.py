"""Audio-MAE: a ViT over 16x16 patches, pretrained by filling in the hidden ones.

Paper: Huang et al., "Masked Autoencoders that Listen", NeurIPS 2022. Parts:
- input: AST's, 128 Kaldi mel bands every 10 ms at 16 kHz, 1024 frames (frontend `audiomae`)
- patches side by side, read instant by instant: 64 x 8 = 512, one class token in front
- fixed sin-cos positions, built for the transposed grid (8 x 64): a slip that the released weights
  rely on
- embedding: mean of the patch tokens of the last block, then a norm of its own

The ViT itself is in vit.py, the objective in methods/audio_mae.py; here are the settings and the
forms the weights are published in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from audiossl.models.parts.published import Checkpoint, Layout, Published
from audiossl.models.vit import Pooling, Positions, ViT, fixed_positions

PATCH = 16  # mel bands, and frames
MEL = 128
FRAME_SECONDS = 0.01


def build(
    size: str = "base",
    *,
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mel: int = MEL,
    frames: int = 1024,
    positions: Positions = "sincos_swapped",
    pooling: Pooling = "fc_norm",
    final_norm: bool = True,
    drop_path: float = 0.0,
    checkpointing: bool = False,
) -> ViT:
    """The encoder: spec (batch, mel, frames) -> tokens (batch, 1 + patches, dim).

    positions: "sincos" is the table without the slip. pooling: "patches" for weights that were
    pretrained and no more, whose `fc_norm` nobody has trained. Others as in ViT.
    """
    return ViT(
        size,
        dim=dim,
        depth=depth,
        heads=heads,
        mel=mel,
        frames=frames,
        patch=(PATCH, PATCH),
        order="time",
        class_tokens=1,
        positions=positions,
        pooling=pooling,
        final_norm=final_norm,
        drop_path=drop_path,
        checkpointing=checkpointing,
    )


# --- published layouts ----------------------------------------------------------------------------

AUDIOSET_CLASSES = 527


def _pretrained_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return _fields({**sizes(checkpoint.tensors), "pooling": "patches"}, None)


def _fine_tuned_config(checkpoint: Checkpoint) -> dict[str, Any]:
    head = None
    if "head.weight" in checkpoint.tensors:
        several = len(checkpoint.tensors["head.weight"]) == AUDIOSET_CLASSES
        head = {"name": "linear", "activation": "sigmoid" if several else "softmax"}
    return _fields({**sizes(checkpoint.tensors), "final_norm": False}, head)


def sizes(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """Arguments of `build` that the shapes settle; heads are those of ViT's sizes."""
    table = tensors[f"{prefix}pos_embed"]
    patches, dim = table.shape[1] - 1, table.shape[2]
    grid = (patches // (MEL // PATCH), MEL // PATCH)
    blocks = (re.match(rf"{prefix}blocks\.(\d+)\.", name) for name in tensors)
    return {
        "name": "audio_mae",
        "dim": dim,
        "depth": 1 + max((int(match[1]) for match in blocks if match), default=-1),
        "heads": 16 if dim == 1280 else dim // 64,
        "frames": grid[0] * PATCH,
        "positions": fixed_positions(table, 1, grid),
    }


def _fields(architecture: dict[str, Any], head: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "frontend": {"preset": "audiomae", "frames": architecture["frames"]},
        "head": head,
        "task": "tag" if head else "embed",
        "window_seconds": round(architecture["frames"] * FRAME_SECONDS, 2),
        "method": "supervised" if head else "audio_mae",
    }


# pos_embed is computed, after it has been compared
ENCODER: tuple[tuple[str, str | None], ...] = (
    (r"patch_embed\.proj\.(weight|bias)", r"encoder.patch_embed.\1"),
    (r"(cls_token|(?:fc_)?norm\.(?:weight|bias)|blocks\..+)", r"encoder.\1"),
    (r"pos_embed", None),
)
MARKS = (r"cls_token", r"pos_embed", r"patch_embed\.proj\.weight")

LAYOUTS = (
    Layout(
        name="audio-mae",
        marks=(*MARKS, r"decoder_pos_embed"),
        rows=(*ENCODER, (r"mask_token|decoder_.+", None)),
        config=_pretrained_config,
    ),
    Layout(
        name="audio-mae-encoder",  # the above without its decoder, as timm names it
        marks=(*MARKS, r"norm\.weight"),
        rows=ENCODER,
        config=_pretrained_config,
        absent=(r"decoder_pos_embed", r"fc_norm\.weight"),
    ),
    Layout(
        name="audio-mae-finetuned",  # or its encoder alone; timm has the same names
        marks=(*MARKS, r"fc_norm\.weight"),
        rows=(*ENCODER, (r"head\.(weight|bias)", r"head.linear.\1")),
        config=_fine_tuned_config,
        absent=(r"norm\.weight",),
    ),
)

_NOTICE = (
    "Audio-MAE's weights are CC BY-NC 4.0 by the LICENSE file of their authors (their README says"
    " CC BY 4.0): not for commercial use"
)
PUBLISHED = tuple(
    Published(
        name=name,
        layout=layout,
        licence="CC-BY-NC-4.0",
        training=("AudioSet",),
        source="https://github.com/facebookresearch/AudioMAE",
        notice=_NOTICE,
    )
    for name, layout in (
        ("hf:gaunernst/vit_base_patch16_1024_128.audiomae_as2m", "audio-mae-encoder"),
        ("hf:gaunernst/vit_base_patch16_1024_128.audiomae_as2m_ft_as20k", "audio-mae-finetuned"),
        ("pretrained.pth", "audio-mae"),
        ("finetuned.pth", "audio-mae-finetuned"),
    )
)
