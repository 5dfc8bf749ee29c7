"""SSAST, the Self-Supervised Audio Spectrogram Transformer: AST made to be pretrained.

Paper: Gong, Lai, Chung, Glass, "SSAST: Self-Supervised Audio Spectrogram Transformer", AAAI 2022;
code YuanGongND/ssast. Parts, and what differs from AST:
- input: AST's, 128 Kaldi mel bands every 10 ms at 16 kHz, 1024 frames (frontend `ssast`)
- patches side by side: 16x16, read frequency by frequency (8 x 64 = 512 tokens), or, in the frame
  variant, 128 bands x 2 frames (512 tokens); fine-tuned with overlapping ones (stride 10, or 1)
- DeiT blocks and both class tokens, learned positions; but the embedding is the mean of the patch
  tokens, which alone are taught in pretraining
- weights begin as timm's DeiT does, not from ImageNet
- head: LayerNorm and Linear (`layernorm_linear` in a model's config)

The ViT itself is in vit.py, the objective in methods/ssast.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from audiossl.errors import ModelError
from audiossl.models.parts.published import Checkpoint, Layout, Published
from audiossl.models.vit import Fit, Pooling, ViT

FRAME_SECONDS = 0.01


def build(
    size: str = "base",
    *,
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mel: int = 128,
    frames: int = 1024,
    patch: Sequence[int] = (16, 16),
    stride: Sequence[int] | None = None,
    pooling: Pooling = "patches",
    mlp_ratio: float = 4.0,
    eps: float = 1e-6,
    drop_path: float = 0.0,
    fit: Fit = "cut",
    checkpointing: bool = False,
) -> ViT:
    """The encoder: spec (batch, mel, frames) -> tokens (batch, 2 + patches, dim).

    patch, stride: (frequency, time) in mel bands and frames; (128, 2) is the frame variant, stride
    None = patches side by side, as pretraining needs them. pooling: "patches", or "cls_dist", the
    mean of both class tokens, which the authors' code offers too. Others as in ViT.
    """
    encoder = ViT(
        size,
        dim=dim,
        depth=depth,
        heads=heads,
        mel=mel,
        frames=frames,
        patch=patch,
        stride=stride,
        order="frequency",
        class_tokens=2,
        positions="learned",
        fit=fit,
        pooling=pooling,
        mlp_ratio=mlp_ratio,
        eps=eps,
        drop_path=drop_path,
        checkpointing=checkpointing,
    )
    for module in encoder.modules():  # DeiT's first weights in place of the ViT's
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
    encoder.patch_embed.reset_parameters()
    return encoder


# --- published layouts ----------------------------------------------------------------------------

AUDIOSET_CLASSES = 527
MEL = 128
FRAMES = (1024, 512, 128)  # input lengths of the paper's tasks
STRIDES = (10, 12, 14, 16)  # overlap of 6, 4, 2, 0: AST's own
NEVER = r"(?!)"  # matches nothing


def _pretrained_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The files name their input size; all else is read off the shapes, as the authors' loader
    does."""
    mel, frames = (_whole(checkpoint, f"p_input_{axis}dim") for axis in "ft")
    return _fields({**_sizes(checkpoint), "mel": mel, "frames": frames}, None)


def _fine_tuned_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """These files have AST's names and say neither stride nor length; the number of positions
    does."""
    sizes = _sizes(checkpoint)
    patches = checkpoint.tensors["v.pos_embed"].shape[1] - 2
    given = checkpoint.overrides.get("architecture", {})
    stride, frames = _stride_and_frames(patches, sizes["patch"], given)
    classes = len(checkpoint.tensors["mlp_head.1.weight"])
    activation = "sigmoid" if classes == AUDIOSET_CLASSES else "softmax"
    head = {"name": "layernorm_linear", "activation": activation}
    return _fields({**sizes, "mel": MEL, "frames": frames, "stride": stride}, head)


def _sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    tensors = checkpoint.tensors
    dim = tensors["v.cls_token"].shape[-1]
    found = (re.match(r"v\.blocks\.(\d+)\.", name) for name in tensors)
    return {
        "name": "ssast",
        "dim": dim,
        "depth": 1 + max((int(match[1]) for match in found if match), default=-1),
        "heads": dim // 64,  # DeiT's three sizes all have 64 a head
        "patch": list(tensors["v.patch_embed.proj.weight"].shape[2:]),
    }


def _whole(checkpoint: Checkpoint, name: str) -> int:
    value = checkpoint.tensors[name].tolist()
    if not isinstance(value, int):
        raise ModelError(f"{name}: expected one whole number")
    return value


def _stride_and_frames(
    patches: int, patch: Sequence[int], given: Mapping[str, Any]
) -> tuple[list[int], int]:
    if "stride" in given and "frames" in given:
        return list(given["stride"]), given["frames"]
    height, width = patch
    strides = [[MEL, step] for step in (1, 2)] if height == MEL else [[n, n] for n in STRIDES]
    for stride in strides:
        for frames in FRAMES:
            rows, columns = (MEL - height) // stride[0] + 1, (frames - width) // stride[1] + 1
            if patches == rows * columns:
                return stride, frames
    raise ModelError(
        f"{patches} positions fit none of SSAST's own settings: give stride and frames"
    )


def _fields(architecture: dict[str, Any], head: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "frontend": {
            "preset": "ssast",
            "mels": architecture["mel"],
            "frames": architecture["frames"],
        },
        "head": head,
        "task": "tag" if head else "embed",
        "window_seconds": round(architecture["frames"] * FRAME_SECONDS, 2),
        "method": "supervised" if head else "ssast",
    }


_ENCODER: tuple[tuple[str, str | None], ...] = (
    (r"v\.patch_embed\.proj\.(weight|bias)", r"encoder.patch_embed.\1"),
    (r"v\.(cls_token|dist_token|pos_embed|norm\..+|blocks\..+)", r"encoder.\1"),
    (r"v\.head(_dist)?\.(weight|bias)", None),  # of DeiT: never used
)

LAYOUTS = (
    Layout(
        name="ssast",
        marks=(r"v\.dist_token", r"cpredlayer\.0\.weight"),
        rows=(
            *_ENCODER,
            (r"p_input_[ft]dim|mask_embed|[cg]predlayer\.[02]\.(weight|bias)", None),
        ),
        config=_pretrained_config,
    ),
    Layout(
        name="ssast-finetuned",
        marks=(NEVER,),  # its names are those of AST, which pools otherwise: it must be asked for
        rows=(
            *_ENCODER,
            (r"mlp_head\.0\.(weight|bias)", r"head.norm.\1"),
            (r"mlp_head\.1\.(weight|bias)", r"head.linear.\1"),
        ),
        config=_fine_tuned_config,
    ),
)

PUBLISHED = tuple(
    Published(
        name=f"SSAST-{name}.pth",
        layout="ssast",
        licence="BSD-3-Clause",
        training=("AudioSet", "LibriSpeech"),
        source="https://github.com/YuanGongND/ssast",
    )
    for name in (
        "Base-Patch-400",
        "Base-Frame-400",
        "Base-Patch-250",
        "Base-Frame-250",
        "Small-Patch-400",
        "Tiny-Patch-400",
        "Tiny-Frame-400",
    )
)
