"""AST, the Audio Spectrogram Transformer: a ViT over 16x16 patches that overlap.

Paper: Gong, Chung, Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021. Parts:
- input: 128 Kaldi mel bands, 25 ms windows every 10 ms at 16 kHz, 1024 frames (frontend `ast`)
- patches of 16x16 every 10 bands and 10 frames, read frequency by frequency: 12 x 101 = 1212
- DeiT blocks with a class and a distillation token, learned positions; embedding = mean of the two
- head: LayerNorm and Linear (`layernorm_linear` in a model's config)

The ViT itself is in vit.py; here are AST's settings and the forms its weights are published in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from audiossl.errors import ModelError
from audiossl.models.parts.published import Checkpoint, Layout, Published
from audiossl.models.vit import Fit, ViT

PATCH = 16  # mel bands, and frames: AST has no other
FRAME_SECONDS = 0.01


def build(
    size: str = "base",
    *,
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mel: int = 128,
    frames: int = 1024,
    stride: Sequence[int] = (10, 10),
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    eps: float = 1e-6,
    drop_path: float = 0.0,
    fit: Fit = "cut",
    checkpointing: bool = False,
) -> ViT:
    """The encoder: spec (batch, mel, frames) -> tokens (batch, 2 + patches, dim).

    stride: (frequency, time) in mel bands and frames; 16 = patches side by side. Others as in ViT.
    """
    return ViT(
        size,
        dim=dim,
        depth=depth,
        heads=heads,
        mel=mel,
        frames=frames,
        patch=(PATCH, PATCH),
        stride=stride,
        order="frequency",
        class_tokens=2,
        positions="learned",
        fit=fit,
        pooling="cls_dist",
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        eps=eps,
        drop_path=drop_path,
        checkpointing=checkpointing,
    )


# --- published layouts ----------------------------------------------------------------------------

AUDIOSET_CLASSES = 527
STRIDES = (10, 12, 14, 16)  # the paper's own: overlap of 6, 4, 2, 0
FRAMES = (1024, 512, 128)  # the paper's input lengths: AudioSet, ESC-50, Speech Commands
HF_DEFAULTS = {  # what transformers' ASTConfig means where its config.json is silent
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "patch_size": PATCH,
    "qkv_bias": True,
    "frequency_stride": 10,
    "time_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}


def _original_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The authors' files hold weights alone: sizes and strides are read off the shapes."""
    dim = checkpoint.tensors["v.cls_token"].shape[-1]
    patches = checkpoint.tensors["v.pos_embed"].shape[1] - 2
    height, width = checkpoint.tensors["v.patch_embed.proj.weight"].shape[2:]
    if (height, width) != (PATCH, PATCH):
        found = f"patches of {height}x{width}, and AST's are {PATCH}x{PATCH}"
        raise ModelError(f"{found}: a fine-tuned SSAST? --layout ssast-finetuned")
    stride, frames = _stride_and_frames(patches, checkpoint.overrides.get("architecture", {}))
    architecture = {
        "name": "ast",
        "dim": dim,
        "depth": _depth(checkpoint.tensors),
        "heads": dim // 64,  # DeiT's three sizes all have 64 a head
        "frames": frames,
        "stride": stride,
    }
    classes = len(checkpoint.tensors["mlp_head.1.weight"])
    head = {
        "name": "layernorm_linear",
        "activation": "sigmoid" if classes == AUDIOSET_CLASSES else "softmax",
    }
    return _fields(architecture, head, {})


def _stride_and_frames(patches: int, given: Mapping[str, Any]) -> tuple[list[int], int]:
    if "stride" in given and "frames" in given:
        return list(given["stride"]), given["frames"]
    for stride in STRIDES:
        for frames in FRAMES:
            if patches == _steps(128, stride) * _steps(frames, stride):
                return [stride, stride], frames
    raise ModelError(f"{patches} positions fit none of AST's own settings: give stride and frames")


def _steps(length: int, stride: int) -> int:
    return (length - PATCH) // stride + 1


def _transformers_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What transformers' config.json and preprocessor_config.json say."""
    theirs = {**HF_DEFAULTS, **checkpoint.sidecars.get("config.json", {})}
    depth = _depth(checkpoint.tensors)
    for key, known in (("num_hidden_layers", depth), ("hidden_act", "gelu"), ("patch_size", PATCH)):
        if theirs[key] != known:
            raise ModelError(f"config.json: {key} is {theirs[key]!r}, expected {known!r}")
    architecture = {
        "name": "ast",
        "dim": int(theirs["hidden_size"]),
        "depth": depth,
        "heads": int(theirs["num_attention_heads"]),
        "mel": int(theirs["num_mel_bins"]),
        "frames": int(theirs["max_length"]),
        "stride": [int(theirs["frequency_stride"]), int(theirs["time_stride"])],
        "mlp_ratio": theirs["intermediate_size"] / int(theirs["hidden_size"]),
        "qkv_bias": bool(theirs["qkv_bias"]),
        "eps": float(theirs["layer_norm_eps"]),
    }
    features = checkpoint.sidecars.get("preprocessor_config.json", {})
    return _fields(
        architecture,
        _transformers_head(checkpoint, theirs),
        _transformers_frontend(features, architecture["mel"]),
    )


def _transformers_frontend(features: Mapping[str, Any], mels: int) -> dict[str, Any]:
    """Differences from the preset: transformers leaves the wave's mean in."""
    frontend: dict[str, Any] = {"remove_mean": False, "mels": mels}
    if features.get("num_mel_bins", mels) != mels:
        raise ModelError(f"config.json has {mels} mel bands, preprocessor_config.json has others")
    if "sampling_rate" in features:
        frontend["rate"] = features["sampling_rate"]
    if features.get("do_normalize") is False:
        frontend |= {"mean": 0.0, "scale": 1.0}
    elif "mean" in features and "std" in features:
        mean, std = float(features["mean"]), float(features["std"])
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ModelError(f"preprocessor_config.json: mean {mean} and std {std} make no sense")
        frontend |= {"mean": mean, "scale": 2 * std}
    return frontend


def _transformers_head(checkpoint: Checkpoint, theirs: Mapping[str, Any]) -> dict[str, Any] | None:
    if "classifier.dense.weight" not in checkpoint.tensors:
        return None
    classes = len(checkpoint.tensors["classifier.dense.weight"])
    kind = theirs.get("problem_type")
    several = kind == "multi_label_classification" or (not kind and classes == AUDIOSET_CLASSES)
    head: dict[str, Any] = {
        "name": "layernorm_linear",
        "eps": float(theirs["layer_norm_eps"]),
        "activation": "sigmoid" if several else "softmax",
    }
    if "id2label" in theirs:
        names = theirs["id2label"]
        head["labels"] = [names[str(index)] for index in range(len(names))]
    return head


def _fields(
    architecture: dict[str, Any], head: dict[str, Any] | None, frontend: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "frontend": {"preset": "ast", "frames": architecture["frames"], **frontend},
        "head": head,
        "task": "tag" if head else "embed",
        "window_seconds": round(architecture["frames"] * FRAME_SECONDS, 2),
        "method": "supervised",
    }


def _depth(tensors: Mapping[str, Any]) -> int:
    found = (re.search(r"\b(?:blocks|layers?)\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


# a checkpoint of the bare encoder (ASTModel) lacks the prefix, one of transformers 5 in memory has
# the second set of names; on disk both versions write the first
HF_ROOT = r"(?:audio_spectrogram_transformer\.)?"
HF_LAYER = HF_ROOT + r"(?:encoder\.layer|layers)\.(\d+)\."

LAYOUTS = (
    Layout(
        name="ast",
        marks=(r"v\.dist_token", r"mlp_head\.1\.weight"),
        rows=(
            (r"v\.patch_embed\.proj\.(weight|bias)", r"encoder.patch_embed.\1"),
            (r"v\.(cls_token|dist_token|pos_embed|norm\..+|blocks\..+)", r"encoder.\1"),
            (r"mlp_head\.0\.(weight|bias)", r"head.norm.\1"),
            (r"mlp_head\.1\.(weight|bias)", r"head.linear.\1"),
            (r"v\.head(_dist)?\.(weight|bias)", None),  # DeiT's ImageNet heads: never used by AST
        ),
        config=_original_config,
    ),
    Layout(
        name="ast-transformers",
        marks=(
            HF_ROOT + r"embeddings\.distillation_token",
            HF_LAYER + r"attention\.(attention\.query|q_proj)\.weight",
        ),
        rows=(
            (HF_ROOT + r"embeddings\.cls_token", "encoder.cls_token"),
            (HF_ROOT + r"embeddings\.distillation_token", "encoder.dist_token"),
            (HF_ROOT + r"embeddings\.position_embeddings", "encoder.pos_embed"),
            (
                HF_ROOT + r"embeddings\.patch_embeddings\.projection\.(weight|bias)",
                r"encoder.patch_embed.\1",
            ),
            (HF_LAYER + r"layernorm_before\.(.+)", r"encoder.blocks.\1.norm1.\2"),
            (HF_LAYER + r"layernorm_after\.(.+)", r"encoder.blocks.\1.norm2.\2"),
            (
                HF_LAYER + r"attention\.(?:attention\.query|q_proj)\.(.+)",
                r"encoder.blocks.\1.attn.qkv.\2@0",
            ),
            (
                HF_LAYER + r"attention\.(?:attention\.key|k_proj)\.(.+)",
                r"encoder.blocks.\1.attn.qkv.\2@1",
            ),
            (
                HF_LAYER + r"attention\.(?:attention\.value|v_proj)\.(.+)",
                r"encoder.blocks.\1.attn.qkv.\2@2",
            ),
            (
                HF_LAYER + r"attention\.(?:output\.dense|o_proj)\.(.+)",
                r"encoder.blocks.\1.attn.proj.\2",
            ),
            (HF_LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"encoder.blocks.\1.mlp.fc1.\2"),
            (HF_LAYER + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"encoder.blocks.\1.mlp.fc2.\2"),
            (HF_ROOT + r"layernorm\.(weight|bias)", r"encoder.norm.\1"),
            (r"classifier\.layernorm\.(weight|bias)", r"head.norm.\1"),
            (r"classifier\.dense\.(weight|bias)", r"head.linear.\1"),
        ),
        config=_transformers_config,
    ),
)

PUBLISHED = (
    Published(
        name="hf:MIT/ast-finetuned-audioset-10-10-0.4593",
        layout="ast-transformers",
        licence="BSD-3-Clause",
        training=("ImageNet", "AudioSet"),
        source="https://github.com/YuanGongND/ast",
    ),
    Published(
        name="audioset_10_10_0.4593.pth",
        layout="ast",
        licence="BSD-3-Clause",
        training=("ImageNet", "AudioSet"),
        source="https://github.com/YuanGongND/ast",
    ),
)
